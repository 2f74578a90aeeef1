// Bun at its best: offers in memory, clicks through a Redis queue in batches, rows in batches.
// The click is still in this process's memory when the answer leaves, and in Redis a few
// milliseconds later: the fastest shape, which a crash makes lose clicks.

import Redis from "ioredis";
import pg from "pg";

const QUEUE = "queue:clicks";
const FLUSH_MS = Number(process.env.FLUSH_MS ?? 5);
const INSERT_ROWS = Number(process.env.INSERT_ROWS ?? 2000);
const IDLE_MS = 20;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 2 });

// The tracking template, filled but for the click id: `before + clickId + after`.
type Offer = { merchantId: string; merchantSlug: string; before: string; after: string };

async function loadOffers(): Promise<Map<string, Offer>> {
  const { rows } = await pool.query(
    "select id, merchant_id, merchant_slug, tracking_template, url from offers where active",
  );
  const offers = new Map<string, Offer>();
  for (const row of rows) {
    const [before, after] = row.tracking_template
      .replace("{url}", encodeURIComponent(row.url))
      .split("{click_id}");
    offers.set(row.id, {
      merchantId: row.merchant_id,
      merchantSlug: row.merchant_slug,
      before,
      after,
    });
  }
  return offers;
}

const offers = await loadOffers();
const producer = new Redis(process.env.REDIS_SOCKET!);
const consumer = new Redis(process.env.REDIS_SOCKET!);

let pending: string[] = [];

function record(click: string): void {
  if (pending.push(click) === 1) setTimeout(flush, FLUSH_MS);
}

function flush(): void {
  const batch = pending;
  pending = [];
  producer.call("RPUSH", QUEUE, ...batch).catch((problem) => {
    console.error("RPUSH failed, its clicks go into the next batch:", problem);
    for (const click of batch) record(click);
  });
}

const STORE_CLICKS = {
  name: "store_clicks",
  text: `insert into clicks
         (id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer)
         select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[],
                              $5::timestamptz[], $6::inet[], $7::text[], $8::text[])`,
};

// The same rows from one JSON text: the messages go on as they came out of Redis, and
// PostgreSQL, on another core, does the parsing.
const STORE_JSON = {
  name: "store_json",
  text: `insert into clicks
         (id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer)
         select (click->>0)::uuid, (click->>1)::uuid, (click->>2)::uuid, (click->>3)::uuid,
                (click->>4)::timestamptz, (click->>5)::inet, click->>6, click->>7
         from jsonb_array_elements($1::jsonb) as click`,
};

const store = process.env.STORE === "json" ? storeJson : storeColumns;
let stopping = false;

async function consume(): Promise<void> {
  for (;;) {
    const batch = (await consumer.call("LPOP", QUEUE, INSERT_ROWS)) as string[] | null;
    if (batch !== null) await store(batch);
    // A short batch means the queue is empty: let one gather instead of storing row by row.
    if (batch === null || batch.length < INSERT_ROWS / 2) {
      if (batch === null && stopping && pending.length === 0) return;
      await Bun.sleep(IDLE_MS);
    }
  }
}

async function storeJson(batch: string[]): Promise<void> {
  await pool.query({ ...STORE_JSON, values: [`[${batch.join(",")}]`] });
}

async function storeColumns(batch: string[]): Promise<void> {
  const columns: unknown[][] = [[], [], [], [], [], [], [], []];
  for (const text of batch) {
    const click = JSON.parse(text);
    for (let index = 0; index < 8; index++) columns[index].push(click[index]);
  }
  await pool.query({ ...STORE_CLICKS, values: columns });
}

function redirect(request: Request, server: Bun.Server): Response {
  const parts = request.url.split("/"); // http: '' host 'out' merchant offer user
  const offer = offers.get(parts[5]);
  if (
    offer === undefined ||
    offer.merchantSlug !== parts[4] ||
    parts[3] !== "out" ||
    parts.length !== 7 ||
    !UUID.test(parts[6])
  ) {
    return new Response("No such offer", { status: 404 });
  }
  const clickId = Bun.randomUUIDv7();
  record(
    JSON.stringify([
      clickId,
      offer.merchantId,
      parts[5],
      parts[6],
      new Date().toISOString(),
      server.requestIP(request)?.address ?? null,
      request.headers.get("user-agent") ?? "",
      request.headers.get("referer") ?? "",
    ]),
  );
  const headers = { Location: offer.before + clickId + offer.after };
  return new Response(null, { status: 302, headers });
}

const consuming = consume();
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  fetch: redirect,
});

process.on("SIGTERM", async () => {
  await server.stop();
  stopping = true;
  await consuming;
  process.exit(0);
});

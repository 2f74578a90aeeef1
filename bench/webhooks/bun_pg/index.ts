// What most would write: verify the signature over the raw body, insert a row, answer. An answered
// event is a committed row.

import { timingSafeEqual } from "node:crypto";
import pg from "pg";

const SECRET = process.env.RAZORPAY_WEBHOOK_SECRET!;
const POOL_SIZE = Number(process.env.POOL_SIZE ?? 20);

const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  max: POOL_SIZE,
  // Every connection stays open, so no request pays for a new one.
  min: POOL_SIZE,
  idleTimeoutMillis: 0,
});

// Named, so that PostgreSQL parses and plans it once per connection.
const STORE_EVENT = {
  name: "store_event",
  text: `insert into webhook_logs (id, source, event_id, event_type, body)
         values ($1, 'razorpay', $2, $3, $4) on conflict do nothing`,
};

function isSigned(body: Buffer, signature: string): boolean {
  const hmac = new Bun.CryptoHasher("sha256", SECRET);
  const expected = Buffer.from(hmac.update(body).digest("hex"));
  const given = Buffer.from(signature);
  return given.length === expected.length && timingSafeEqual(given, expected);
}

async function receive(request: Request): Promise<Response> {
  const body = Buffer.from(await request.arrayBuffer());
  const eventId = request.headers.get("x-razorpay-event-id");
  const signature = request.headers.get("x-razorpay-signature") ?? "";
  if (!eventId || !isSigned(body, signature)) return new Response("Unauthorized", { status: 401 });
  const { event } = JSON.parse(body.toString());
  await pool.query({ ...STORE_EVENT, values: [Bun.randomUUIDv7(), eventId, event, body] });
  return new Response("OK");
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  routes: {
    "/razorpay": { POST: receive },
    "/ready": () => new Response("OK"),
  },
  fetch: () => new Response("Not found", { status: 404 }),
  error(problem) {
    console.error(problem);
    return new Response("Internal error", { status: 500 });
  },
});

process.on("SIGTERM", async () => {
  await server.stop();
  await pool.end();
  process.exit(0);
});

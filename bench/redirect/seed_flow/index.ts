// The flow the seed documents describe: look the offer up, store the click, count it, redirect.
// Everything is awaited before the answer, so an answered click is a committed row.

import Redis from "ioredis";
import pg from "pg";

const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  max: Number(process.env.POOL_SIZE ?? 20),
  // Every connection stays open, so no request pays for a new one.
  min: Number(process.env.POOL_SIZE ?? 20),
  idleTimeoutMillis: 0,
});
const redis = new Redis(process.env.REDIS_SOCKET!, {
  // Commands of one tick travel together.
  enableAutoPipelining: true,
});

// Named, so that PostgreSQL parses and plans each once per connection.
const FIND_OFFER = {
  name: "find_offer",
  text: `select merchant_id, tracking_template, url from offers
         where id = $1 and merchant_slug = $2 and active`,
};
const STORE_CLICK = {
  name: "store_click",
  text: `insert into clicks
         (id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer)
         values ($1, $2, $3, $4, now(), $5, $6, $7)`,
};

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  routes: {
    "/out/:merchantSlug/:offerUuid/:userUuid": async (request, server) => {
      const { merchantSlug, offerUuid, userUuid } = request.params;
      const found = await pool.query({ ...FIND_OFFER, values: [offerUuid, merchantSlug] });
      const offer = found.rows[0];
      if (offer === undefined) return new Response("No such offer", { status: 404 });

      const clickId = Bun.randomUUIDv7();
      const click = [
        clickId,
        offer.merchant_id,
        offerUuid,
        userUuid,
        server.requestIP(request)?.address ?? null,
        request.headers.get("user-agent") ?? "",
        request.headers.get("referer") ?? "",
      ];
      // The two do not need each other, so they run at once.
      await Promise.all([
        pool.query({ ...STORE_CLICK, values: click }),
        redis.incr(`clicks:${offerUuid}`),
      ]);
      const target = offer.tracking_template
        .replace("{click_id}", clickId)
        .replace("{url}", encodeURIComponent(offer.url));
      return new Response(null, { status: 302, headers: { Location: target } });
    },
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
  redis.disconnect();
  process.exit(0);
});

// BullMQ: Redis, Lua scripts. Does what `../harness.py` does, in JavaScript.
'use strict';

const { parseArgs } = require('node:util');
const { Queue, Worker } = require('bullmq');
const Redis = require('ioredis');

const PAUSE_MS = [20, 80];

const { values: run } = parseArgs({
  options: {
    mode: { type: 'string' },
    url: { type: 'string' },
    jobs: { type: 'string' },
    batch: { type: 'string', default: '1' },
    producers: { type: 'string', default: '100' },
    concurrency: { type: 'string', default: '100' },
    warm: { type: 'string', default: '500' },
  },
});
for (const key of ['jobs', 'batch', 'producers', 'concurrency', 'warm']) run[key] = Number(run[key]);

const connect = () => new Redis(run.url, { maxRetriesPerRequest: null });

const payload = (number) => ({
  to: `shopper${number}@example.com`,
  subject: `Your cashback ${number} is confirmed`,
  text: 'Your cashback has been confirmed and will be paid with the next run.',
});

// What the worker says of its work: a handler started, jobs were acknowledged.
const tally = {
  startedAt: 0,
  acknowledgedCount: 0,
  expected: 0,
  start() {
    this.startedAt = performance.now();
    this.oneStarted();
  },
  acknowledge() {
    this.acknowledgedCount += 1;
    if (this.acknowledgedCount >= this.expected) this.allAcknowledged();
  },
  expect(more) {
    this.expected = this.acknowledgedCount + more;
    this.started = new Promise((resolve) => { this.oneStarted = resolve; });
    this.acknowledged = new Promise((resolve) => { this.allAcknowledged = resolve; });
  },
};

const queue = new Queue('emails', {
  connection: connect(),
  defaultJobOptions: {
    attempts: 3,
    backoff: { type: 'exponential', delay: 1000 },
    removeOnComplete: true,
  },
});

async function startWorker() {
  const worker = new Worker('emails', async () => { tally.start(); }, {
    connection: connect(),
    concurrency: run.concurrency,
  });
  worker.on('completed', () => tally.acknowledge());
  worker.on('error', (error) => { throw error; });
  await worker.waitUntilReady();
  return worker;
}

async function enqueue(first, end) {
  if (run.batch === 1) {
    await queue.add('notify', payload(first));
    return;
  }
  const batch = [];
  for (let number = first; number < end; number += 1) {
    batch.push({ name: 'notify', data: payload(number) });
  }
  await queue.addBulk(batch);
}

async function enqueueAll(jobs) {
  let next = 0;
  const produce = async () => {
    while (next < jobs) {
      const first = next;
      next = Math.min(first + run.batch, jobs);
      await enqueue(first, next);
    }
  };
  await Promise.all(Array.from({ length: run.producers }, produce));
}

async function mixed() {
  tally.expect(run.jobs);
  const began = performance.now();
  await enqueueAll(run.jobs);
  const enqueued = performance.now();
  await tally.acknowledged;
  const seconds = (performance.now() - began) / 1000;
  return {
    mixed_per_second: run.jobs / seconds,
    mixed_seconds: seconds,
    mixed_enqueue_seconds: (enqueued - began) / 1000,
  };
}

async function split() {
  tally.expect(run.jobs);
  const began = performance.now();
  await enqueueAll(run.jobs);
  const enqueued = performance.now();
  await startWorker();
  await tally.acknowledged;
  const ended = performance.now();
  return {
    enqueue_per_second: (run.jobs * 1000) / (enqueued - began),
    drain_per_second: (run.jobs * 1000) / (ended - enqueued),
  };
}

async function latency() {
  const latencies = [];
  for (let number = 0; number < run.jobs; number += 1) {
    const pause = PAUSE_MS[0] + Math.random() * (PAUSE_MS[1] - PAUSE_MS[0]);
    await new Promise((resolve) => { setTimeout(resolve, pause); });
    tally.expect(1);
    const began = performance.now();
    await enqueue(number, number + 1);
    await tally.started;
    latencies.push(tally.startedAt - began);
    await tally.acknowledged;
  }
  latencies.sort((a, b) => a - b);
  return {
    p50_ms: quantile(latencies, 0.5),
    p99_ms: quantile(latencies, 0.99),
    max_ms: latencies[latencies.length - 1],
  };
}

// The same interpolation as Python's statistics.quantiles(method="inclusive").
function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

async function main() {
  await queue.waitUntilReady();
  const worker = await startWorker();
  tally.expect(run.warm);
  await enqueueAll(run.warm);
  await tally.acknowledged;
  if (run.mode === 'split') await worker.close();
  const figures = await { mixed, split, latency }[run.mode]();
  console.log(JSON.stringify({ jobs: run.jobs, figures }));
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

-- What the status of a webhook is read from, by the event whose story it belongs to.

-- Messages that followed from something else: on their way they keep it from being done. A message
-- that begins a story, as most do, is found by its id and costs nothing here.
create index outbox_followers on outbox (correlation_id) where correlation_id <> id::text;

-- Letters that an operator gave up, and events that one had published anew since.
create index audit_logs_discards on audit_logs ((details #>> '{letter,correlation_id}'))
    where action = 'dead_letters.discard';
create index audit_logs_webhook_replays on audit_logs using gin ((details -> 'webhook_ids'))
    where action = 'webhooks.replay';

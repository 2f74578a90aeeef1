-- Past events: as many rows as asked for, received today, so that they are in the partition and in
-- the indexes that new ones go into. :rows is put in by backlog.py.

with past as (
    select
        n,
        date_trunc('day', now(), 'UTC') + (now() - date_trunc('day', now(), 'UTC')) * n / :rows
            as received_at,
        md5(n::text) as noise,
        -- Fourteen letters and digits, in no order, as Razorpay's ids are.
        left(translate(encode(sha256(n::text::bytea), 'base64'), '+/=', 'xyz'), 14) as event_id
    from generate_series(1, :rows) as n
), made as (
    select
        -- Version 7, as couponflow makes them: the time, then noise.
        (lpad(to_hex((extract(epoch from received_at) * 1000)::bigint), 12, '0')
            || '7' || left(noise, 3) || '8' || right(noise, 15))::uuid as id,
        received_at,
        event_id,
        convert_to(
            '{"entity":"event","account_id":"acc_Kq3w8LmN2pQ5rS","event":"payment.captured",'
            || '"contains":["payment"],"payload":{"payment":{"entity":{"id":"pay_' || event_id
            || '","entity":"payment","currency":"INR","status":"captured","invoice_id":null,'
            || '"international":false,"amount_refunded":0,"amount_transferred":0,'
            || '"refund_status":null,"captured":true,"description":"Gift card","card_id":null,'
            || '"bank":null,"wallet":null,"vpa":"payer' || n || '@exampleupi",'
            || '"email":"asha@example.com","error_code":null,"error_description":null,'
            || '"error_source":null,"error_step":null,"error_reason":null,"method":"upi",'
            || '"acquirer_data":{"rrn":"' || lpad(n::text, 12, '4') || '"},'
            || '"upi":{"payer_account_type":"bank_account","vpa":"payer' || n
            || '@exampleupi","flow":"intent"},"amount":49900,"base_amount":49900,'
            || '"order_id":"order_' || left(noise, 14) || '","contact":"+919812345678",'
            || '"notes":{"cart_id":"c_' || n || '"},"fee":1178,"tax":180,'
            || '"created_at":1764547265}}},"created_at":1764547268}',
            'UTF8'
        ) as body
    from past
), logged as (
    insert into webhook_logs (id, received_at, source, event_type, event_id, verdict, method, query,
                              headers, body, body_bytes, body_sha256, address)
    select id, received_at, 'razorpay', 'payment.captured', event_id, 'verified', 'POST', '',
           json_build_object('content-type', 'application/json', 'x-razorpay-event-id', event_id),
           body, octet_length(body), sha256(body), '127.0.0.1'
    from made
    returning event_id, id, received_at
)
insert into webhook_events (source, event_id, webhook_id, received_at)
select 'razorpay', event_id, id, received_at from logged;

"""The providers' own verifiers; what their packages warn of on import is no fault of ours."""

import warnings
from collections.abc import Callable, Mapping

from couponflow.kernel.clock import SystemClock
from couponflow.sandbox.senders.events import SenderName, SignedRequest
from couponflow.sandbox.senders.keys import SenderKeys, sendgrid_public_key

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import easypost.errors
    import easypost.util
    import qstash.errors
    import qstash.receiver
    import razorpay.errors
    import razorpay.utility
    import sendgrid.helpers.eventwebhook
    import stripe


def accepts(request: SignedRequest, keys: SenderKeys) -> bool:
    """Whether the provider's own verifier believes the request now."""
    return VERIFIERS[request.source](request, keys)


def _razorpay(request: SignedRequest, keys: SenderKeys) -> bool:
    body, signature = request.body.decode(), request.headers["X-Razorpay-Signature"]
    try:
        return bool(
            razorpay.utility.Utility().verify_webhook_signature(
                body, signature, keys.razorpay_secret
            )
        )
    except razorpay.errors.SignatureVerificationError:
        return False


def _stripe(request: SignedRequest, keys: SenderKeys) -> bool:
    header = request.headers["Stripe-Signature"]
    try:
        event = stripe.Webhook.construct_event(request.body, header, keys.stripe_secret)
    except stripe.SignatureVerificationError:
        return False
    return event.id == request.event_id


def _sendgrid(request: SignedRequest, keys: SenderKeys) -> bool:
    verifier = sendgrid.helpers.eventwebhook.EventWebhook(sendgrid_public_key(keys))
    signature = request.headers["X-Twilio-Email-Event-Webhook-Signature"]
    timestamp = request.headers["X-Twilio-Email-Event-Webhook-Timestamp"]
    return bool(verifier.verify_signature(request.body.decode(), signature, timestamp))


def _qstash(request: SignedRequest, keys: SenderKeys) -> bool:
    key = keys.qstash_signing_key
    try:
        qstash.receiver.Receiver(key, key).verify(
            signature=request.headers["Upstash-Signature"],
            body=request.body.decode(),
            url=keys.qstash_destination_url,
        )
    except qstash.errors.SignatureError:
        return False
    return True


def _easypost(request: SignedRequest, keys: SenderKeys) -> bool:
    headers = dict(request.headers)
    try:
        told = easypost.util.validate_webhook(request.body, headers, keys.easypost_secret)
    except easypost.errors.SignatureVerificationError:
        return False
    return bool(told["id"] == request.event_id)


VERIFIERS: Mapping[SenderName, Callable[[SignedRequest, SenderKeys], bool]] = {
    "razorpay": _razorpay,
    "stripe": _stripe,
    "sendgrid": _sendgrid,
    "qstash": _qstash,
    "easypost": _easypost,
}


def now() -> float:
    """What the verifiers take for now."""
    return SystemClock().now()

"""Stripe's library, unchanged, makes payments: one for each line of JSON that it reads.

For each it writes a line: what came of it, or which error was raised. A payment without a key gets
one from the library, which keeps it over its own tries. With a key the application may call again
when the library gives up.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import stripe

base_url, threads, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = stripe.StripeClient(
    "sk_test_alice",
    base_addresses={"api": base_url},
    http_client=stripe.RequestsClient(timeout=timeout),
)


def pay(job):
    options = {"max_network_retries": job["retries"]}
    if job["key"]:
        options["idempotency_key"] = job["key"]
    params = {
        "amount": job["amount"],
        "currency": "eur",
        "metadata": {"operation": job["operation"]},
    }
    answer = {"operation": job["operation"], "calls": 0}
    while True:
        answer["calls"] += 1
        try:
            intent = client.v1.payment_intents.create(params, options)
            assert intent.metadata["operation"] == job["operation"], intent
            return answer | {"id": intent.id}
        except stripe.APIConnectionError as error:
            if job["again"] and answer["calls"] < 10:
                time.sleep(0.1)
                continue
            return answer | {"error": type(error).__name__}
        except Exception as error:
            status = getattr(error, "http_status", None)
            return answer | {"error": type(error).__name__, "status": status}


with ThreadPoolExecutor(threads) as pool:
    for answer in pool.map(pay, map(json.loads, sys.stdin)):
        print(json.dumps(answer), flush=True)

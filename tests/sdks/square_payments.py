"""Square's library, unchanged, makes payments: one for each line of JSON that it reads.

For each it writes a line: what came of it, or which error was raised. The key is an argument, and
travels in the body. The library tries again where there is an answer that asks for it; where there
is none, the application calls again, with the same key.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from square import Square
from square.core.api_error import ApiError

base_url, threads, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = Square(base_url=base_url, token="alice", timeout=timeout)


def pay(job):
    answer = {"operation": job["operation"], "calls": 0}
    while True:
        answer["calls"] += 1
        try:
            payment = client.payments.create(
                source_id="cnon:card-nonce-ok",
                idempotency_key=job["key"],
                amount_money={"amount": job["amount"], "currency": "EUR"},
                reference_id=job["operation"],
                request_options={"max_retries": job["retries"]},
            ).payment
            assert payment.reference_id == job["operation"], payment
            return answer | {"id": payment.id}
        except httpx.TransportError as error:
            if job["again"] and answer["calls"] < 10:
                time.sleep(0.1)
                continue
            return answer | {"error": type(error).__name__}
        except ApiError as error:
            return answer | {"error": type(error).__name__, "status": error.status_code}


with ThreadPoolExecutor(threads) as pool:
    for answer in pool.map(pay, map(json.loads, sys.stdin)):
        print(json.dumps(answer), flush=True)

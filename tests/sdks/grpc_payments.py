"""grpcio calls the payment service of the example `tonic`: one call for each line of JSON that it
reads, and once more when it has its answer. For each it writes a line: what came of it. The last line
is what the server says was paid.

`policy` leaves it to gRPC's own retry policy to try again, and goes on where that gives up; `calls`
calls again by itself; `careless` does so with a new key each time, and `bare` stops when it has an
answer.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

folder, target, server, threads, timeout, retries = sys.argv[1:]
sys.path.insert(0, folder)
protos, services = grpc.protos_and_services("payments.proto")

OPTIONS = [
    # A connection for each thread: one that is lost takes no other's calls with it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
POLICY = {
    "methodConfig": [
        {
            "name": [{"service": "payments.v1.Payments"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "ABORTED"],
            },
        }
    ]
}
if retries == "policy":
    OPTIONS.append(("grpc.service_config", json.dumps(POLICY)))
else:
    OPTIONS.append(("grpc.enable_retries", 0))
AGAIN = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
)

here = threading.local()


def stub():
    if not hasattr(here, "stub"):
        here.stub = services.PaymentsStub(grpc.insecure_channel(target, OPTIONS))
    return here.stub


def pay(job):
    request = protos.PayRequest(
        amount=job["amount"],
        currency="EUR",
        simulate=protos.Simulate(delay_ms=job["delay_ms"]),
    )
    calls = 0
    while True:
        calls += 1
        again = retries == "careless" and calls > 1
        key = f"{job['key']}~{calls}" if again else job["key"]
        metadata = (("x-api-key", "alice"), ("idempotency-key", key))
        try:
            payment, call = stub().Pay.with_call(
                request, metadata=metadata, timeout=float(timeout), wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() not in AGAIN or calls >= 20:
                return {"error": str(error.code()), "calls": calls}
            time.sleep(0.2)
            continue
        initial = [list(map(str, pair)) for pair in call.initial_metadata()]
        return {
            "id": str(payment.id),
            "calls": calls,
            "replayed": ["idempotent-replayed", "true"] in initial,
            # All of it but what says that it is a replay, and when it was sent.
            "answer": [
                payment.SerializeToString().hex(),
                [pair for pair in initial if pair[0] not in ("idempotent-replayed", "date")],
                [list(map(str, pair)) for pair in call.trailing_metadata()],
                str(call.code()),
                call.details(),
            ],
        }


def work(job):
    first = pay(job)
    second = {} if retries == "bare" else pay(job)
    same = first.get("answer") == second.get("answer") and second.get("replayed")
    return {"operation": job["operation"], "same": bool(same)} | first


with ThreadPoolExecutor(int(threads)) as pool:
    for answer in pool.map(work, map(json.loads, sys.stdin)):
        print(json.dumps(answer), flush=True)

with grpc.insecure_channel(server) as channel:
    paid = services.PaymentsStub(channel).List(protos.ListRequest(), timeout=30)
    print(json.dumps([[payment.amount, str(payment.id)] for payment in paid.payments]))

"""grpcio makes calls that the example `tonic` refuses, and calls that stream, and writes what came of
each as a line of JSON.
"""

import itertools
import json
import sys
import threading

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

folder, server = sys.argv[1:]
sys.path.insert(0, folder)
protos, services = grpc.protos_and_services("payments.proto")
# No policy: each call is seen as it is answered.
channel = grpc.insecure_channel(server, [("grpc.enable_retries", 0)])
stub = services.PaymentsStub(channel)
DETAILS = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.Help,
    )
}


def metadata(key=None, caller="alice"):
    pairs = (("x-api-key", caller), ("idempotency-key", key))
    return [pair for pair in pairs if pair[1] is not None]


def payment(amount=100, **simulate):
    return protos.PayRequest(
        amount=amount, currency="EUR", simulate=protos.Simulate(**simulate)
    )


def refused(error):
    """What a client can know of an error."""
    status = rpc_status.from_call(error)
    details = {}
    for detail in status.details if status else ():
        name = detail.TypeName()
        kind = DETAILS[name]()
        assert detail.Unpack(kind)
        details[name] = str(kind)
    if status:
        # What is said twice is the same.
        assert status.code == error.code().value[0] and status.message == error.details()
    trailing = {key: str(value) for key, value in error.trailing_metadata()}
    trailing.pop("grpc-status-details-bin", None)
    return {
        "code": error.code().name,
        "message": error.details(),
        "details": details,
        "trailing": trailing,
    }


def outcome(call):
    """Of a call that ends within half a minute."""
    try:
        answer = call()
        return {"code": "OK", "answer": [str(it.id) for it in answer]}
    except grpc.RpcError as error:
        return refused(error)


def say(case, what):
    print(json.dumps({"case": case} | what), flush=True)


def pay(request, *pairs, **more):
    return outcome(lambda: [stub.Pay(request, metadata=metadata(*pairs, **more), timeout=30)])


say("no key", pay(payment()))
say("malformed key", pay(payment(), '"unclosed'))
say("no caller", pay(payment(), "k", caller=None))
say("first", pay(payment(), "k"))
say("again", pay(payment(), "k"))
say("other payload", pay(payment(amount=999), "k"))
say("other caller", pay(payment(), "k", caller="bob"))
say("the handler's mistake", pay(payment(amount=0), "corrected"))
say("corrected", pay(payment(amount=7), "corrected"))
say("the handler fails", pay(payment(fail_times=1), "flaky"))
say("tried again", pay(payment(fail_times=1), "flaky"))

# Three at once: one begins, and each of the others is told so as long as it goes on.
outcomes = []
together = [
    threading.Thread(target=lambda: outcomes.append(pay(payment(delay_ms=3000), "three")))
    for _ in range(3)
]
for thread in together:
    thread.start()
for thread in together:
    thread.join()
for one in sorted(outcomes, key=lambda one: one["code"]):
    say("three at once", one)
say("after the three", pay(payment(delay_ms=3000), "three"))


def batch():
    payments = iter([payment(1), payment(2), payment(3)])
    return stub.PayBatch(payments, metadata=metadata("batch"), timeout=30).payments


def parts():
    request = protos.PartsRequest(amount=100, currency="EUR", parts=3)
    return list(stub.PayInParts(request, metadata=metadata("parts"), timeout=30))


def exchange():
    """Waits for an answer to each payment before it sends the next one."""
    answered = threading.Semaphore()
    over = threading.Event()

    def payments():
        for n in itertools.count(1):
            while not answered.acquire(timeout=0.1):
                if over.is_set():
                    return
            yield payment(n)

    call = stub.Exchange(payments(), metadata=metadata("exchange"), timeout=60)
    try:
        for answer in call:
            answered.release()
            yield answer
    finally:
        over.set()


say("client stream", outcome(batch))
say("client stream again", outcome(batch))
say("server stream", outcome(parts))
say("server stream again", outcome(parts))
say("both", outcome(lambda: list(exchange())))

paid = stub.List(protos.ListRequest(), timeout=30).payments
say("paid", {"code": "OK", "answer": [payment.key for payment in paid]})
channel.close()

//! The cases: each is something that is done so many times, with all that it needs made before.

use std::{
    convert::Infallible,
    future::pending,
    hint::black_box,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use sha2::{Digest, Sha256};
use tower::{Layer, Service, service_fn};
use tower_idempotency::{Claim, Outcome, Reason, RequestBody};

use super::{
    floors::Map,
    records::{Sample, Window},
    service::{Upload, call, handler, layer, layered, outcome, request, store},
};

/// Something that measures the work it is given. It runs it once.
type Meter<'a> = &'a mut dyn FnMut(&mut dyn FnMut());

/// So many requests are made before a measurement, at most: they fit in the processor's cache.
const BATCH: usize = 200;

/// Something that is measured. All runs in an entered runtime.
pub(crate) struct Case(Box<dyn FnMut(usize, Meter<'_>)>);

impl Case {
    fn new(round: impl FnMut(usize, Meter<'_>) + 'static) -> Self {
        Self(Box::new(round))
    }

    /// Does it `times` times under the meter, and what must be done before and after outside of it.
    pub(crate) fn round(&mut self, times: usize, meter: Meter<'_>) {
        (self.0)(times, meter);
    }

    /// How long it takes to do it `times` times.
    pub(crate) fn time(&mut self, times: u64) -> Duration {
        let mut taken = Duration::ZERO;
        let mut left = times;
        while left > 0 {
            let batch = left.min(BATCH as u64);
            self.round(batch as usize, &mut |work| {
                let start = Instant::now();
                work();
                taken += start.elapsed();
            });
            left -= batch;
        }
        taken
    }
}

/// Calls the service with requests made before, reads the answers and drops them.
fn call_all<S, B>(
    service: &mut S,
    requests: &mut Vec<Request<Upload>>,
    expected: StatusCode,
    meter: Meter<'_>,
) where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error = Infallible>,
{
    meter(&mut || {
        for request in requests.drain(..) {
            call(service, black_box(request), expected);
        }
    });
}

/// The bare service. Its requests have keys.
pub(crate) fn bare(upload: &Upload) -> Case {
    bare_with(upload.clone(), Some(0))
}

/// The bare service, for requests without a key.
pub(crate) fn bare_keyless(upload: &Upload) -> Case {
    bare_with(upload.clone(), None)
}

fn bare_with(upload: Upload, key: Option<u64>) -> Case {
    let mut service = service_fn(handler::<Upload>);
    Case::new(move |times, meter| {
        let mut requests = (0..times).map(|_| request(key, &upload)).collect();
        call_all(&mut service, &mut requests, StatusCode::CREATED, meter);
    })
}

/// A POST without a key passes through.
pub(crate) fn bypass(upload: &Upload) -> Case {
    let upload = upload.clone();
    let mut service = layered(store());
    assert_eq!(outcome(&mut service, request(None, &upload)), None);
    Case::new(move |times, meter| {
        let mut requests = (0..times).map(|_| request(None, &upload)).collect();
        call_all(&mut service, &mut requests, StatusCode::CREATED, meter);
    })
}

/// A key that was never seen: the handler runs, and its answer is recorded.
pub(crate) fn fresh(window: &Rc<Window>, upload: &Upload) -> Case {
    let (window, upload) = (Rc::clone(window), upload.clone());
    let mut service = layered(window.store.clone());
    let probe = window.fresh(1);
    let told = outcome(&mut service, request(Some(probe.start), &upload));
    assert_eq!(told, Some(Outcome::Completed));
    window.trim(probe);
    Case::new(move |times, meter| {
        let numbers = window.fresh(times);
        let mut requests = numbers.clone().map(|n| request(Some(n), &upload)).collect();
        call_all(&mut service, &mut requests, StatusCode::CREATED, meter);
        window.trim(numbers);
    })
}

/// As [`fresh`], where records live so short that as many expire as are added: the cost of a server
/// that has run for longer than a record lives.
pub(crate) fn fresh_and_expiring(upload: &Upload, ttl: Duration) -> Case {
    let upload = upload.clone();
    let layer = layer(store()).ttl(ttl);
    let mut service = layer.layer(service_fn(handler::<RequestBody<Upload>>));
    let mut next = 0;
    Case::new(move |times, meter| {
        let mut requests = (0..times)
            .map(|n| request(Some(next + n as u64), &upload))
            .collect();
        next += times as u64;
        call_all(&mut service, &mut requests, StatusCode::CREATED, meter);
    })
}

/// Keys with a record, from all over the store.
pub(crate) fn replay(window: &Rc<Window>, upload: &Upload) -> Case {
    let (window, upload) = (Rc::clone(window), upload.clone());
    let mut service = layered(window.store.clone());
    for number in window.recorded(1) {
        let told = outcome(&mut service, request(Some(number), &upload));
        assert_eq!(told, Some(Outcome::Replayed));
    }
    Case::new(move |times, meter| {
        let numbers = window.recorded(times).into_iter();
        let mut requests = numbers.map(|n| request(Some(n), &upload)).collect();
        call_all(&mut service, &mut requests, StatusCode::CREATED, meter);
    })
}

/// A key that is in progress: 409 at once.
pub(crate) fn conflict(upload: &Upload) -> Case {
    // Nobody drives the runtime, so nothing renews the lease.
    let layer = layer(store()).lease(Duration::from_secs(60 * 60));
    let handler =
        |_: Request<RequestBody<Upload>>| pending::<Result<Response<Full<Bytes>>, Infallible>>();
    let mut service = layer.layer(service_fn(handler));
    let running = service.call(request(Some(0), upload));
    let mut running = Box::pin(running);
    assert!(running.as_mut().now_or_never().is_none());
    let told = outcome(&mut service, request(Some(0), upload));
    assert_eq!(told, Some(Outcome::Refused(Reason::InProgress)));
    let upload = upload.clone();
    Case::new(move |times, meter| {
        // Dropped, it would go on without a place here.
        let _running = &running;
        let mut requests = (0..times).map(|_| request(Some(0), &upload)).collect();
        call_all(&mut service, &mut requests, StatusCode::CONFLICT, meter);
    })
}

/// The two calls of the store that a fresh request makes.
pub(crate) fn claim_and_complete(window: &Rc<Window>) -> Case {
    let window = Rc::clone(window);
    Case::new(move |times, meter| {
        let numbers = window.fresh(times);
        let keys: Vec<_> = numbers.clone().map(|n| window.sample.key(n)).collect();
        meter(&mut || {
            for key in &keys {
                window.sample.claim_and_complete(&window.store, key);
            }
        });
        window.trim(numbers);
    })
}

/// The one call of the store that a replay makes.
pub(crate) fn claim_completed(window: &Rc<Window>) -> Case {
    let window = Rc::clone(window);
    Case::new(move |times, meter| {
        let numbers = window.recorded(times).into_iter();
        let keys: Vec<_> = numbers.map(|n| window.sample.key(n)).collect();
        meter(&mut || {
            for key in &keys {
                let claim = window.sample.claim(&window.store, key);
                assert!(matches!(black_box(claim), Claim::Completed(_)));
            }
        });
    })
}

/// Floor: SHA-256 of the body.
pub(crate) fn sha_256(upload: &Upload) -> Case {
    let body = upload.bytes().clone();
    Case::new(move |times, meter| {
        meter(&mut || {
            for _ in 0..times {
                black_box(Sha256::digest(black_box(&body)));
            }
        });
    })
}

/// Floor: two map operations, at so many entries.
pub(crate) fn two_map_operations(sample: &Rc<Sample>, records: u64) -> Case {
    let sample = Rc::clone(sample);
    let mut map = Map::filled(records, &sample);
    Case::new(move |times, meter| {
        let entries = map.fresh(times, &sample);
        meter(&mut || {
            for (name, value) in &entries {
                map.insert_and_update(black_box(name), value);
            }
        });
        map.trim(times, &sample);
    })
}

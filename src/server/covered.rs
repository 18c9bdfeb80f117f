//! One covered request on its way: admission, claim, handler, record, answer.

use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Version, header::CONNECTION, request::Parts};
use http_body::Body;
use tower::{Service, ServiceExt};

use super::{
    admission::{Admitted, Turned, admit},
    answer::{answered, probed},
    body::{BufferedBody, RequestBody, ResponseBody},
    config::{Config, Form, told},
    extract::InHead,
    takeover::Probed,
};
use crate::{
    engine::{Begin, Ended, Ending, Execution, Running, Stage},
    key::StoreKey,
    record::Entry,
    telemetry::{self, Outcome, Reason},
};

/// One covered request on its way.
///
/// It stays in one place, and its methods borrow it: the whole future is put on the heap for each
/// request, and is worth keeping small. Up to about a kilobyte an allocator has it at hand.
pub(super) struct Covered<Svc> {
    pub(super) config: Arc<Config>,
    pub(super) stage: Arc<Stage>,
    pub(super) inner: Inner<Svc>,
    pub(super) form: Form,
    /// The head of the request, until the handler gets it.
    pub(super) head: Parts,
}

/// The service to call, once.
pub(super) struct Inner<Svc> {
    /// None once it was called, or is not to be called any more.
    service: Option<Svc>,
    ready: bool,
}

impl<Svc> Inner<Svc> {
    /// A service that was asked for its readiness, and is ready.
    pub(super) fn ready(service: Svc) -> Self {
        Self {
            service: Some(service),
            ready: true,
        }
    }

    /// Gives the readiness back: what waits is not to hold a place. A clone has none.
    fn let_go(&mut self)
    where
        Svc: Clone,
    {
        if self.ready {
            self.service = self.service.clone();
            self.ready = false;
        }
    }

    /// Sees that the service is ready, if it was let go.
    async fn get_ready<Request>(&mut self) -> Result<(), Svc::Error>
    where
        Svc: Service<Request>,
    {
        if let (Some(service), false) = (&mut self.service, self.ready) {
            service.ready().await?;
            self.ready = true;
        }
        Ok(())
    }

    /// # Panics
    ///
    /// If it was called before.
    fn call<Request>(&mut self, request: Request) -> Svc::Future
    where
        Svc: Service<Request>,
    {
        let mut service = self.service.take().expect("a service is called once");
        service.call(request)
    }

    /// It is not called, and so does not keep a place from others.
    fn not_called(&mut self) {
        self.service = None;
    }
}

pub(super) type Answer<Svc, ReqBody, ResBody> =
    Result<Response<ResponseBody<ResBody>>, <Svc as Service<Request<RequestBody<ReqBody>>>>::Error>;

#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has room for each argument twice: as it was given, and as it is used"
)]
impl<Svc: Clone> Covered<Svc> {
    pub(super) fn answer<ReqBody, ResBody>(
        mut self,
        body: ReqBody,
        key: InHead,
    ) -> impl Future<Output = Answer<Svc, ReqBody, ResBody>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ReqBody: Body<Data = Bytes>,
        ReqBody::Error: 'static,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        async move {
            let admitted = {
                let body = pin!(body);
                let mut admission = pin!(admit(&self.config, &self.head, body, &key));
                let admitted = poll_fn(|cx| {
                    let polled = admission.as_mut().poll(cx);
                    if polled.is_pending() {
                        // A slow client does not hold a place in the inner service.
                        self.inner.let_go();
                    }
                    polled
                });
                admitted.await
            };
            self.proceed(admitted).await
        }
    }

    /// Answers a request that does not reach the store.
    async fn turned<ReqBody, ResBody>(
        &mut self,
        turned: &mut Turned,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
    {
        let (refusal, unread) = match turned {
            Turned::Refused { refusal, unread } => (&*refusal, *unread),
            Turned::Keyless(body) => return self.pass_on(std::mem::take(body)).await,
        };
        let mut response = self.config.refused(self.form, refusal);
        if unread && self.head.version < Version::HTTP_2 {
            // The server has to close what it cannot read on; the client is to know it before it
            // sends another request (RFC 9112, 9.6).
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        Ok(told(response, None, Outcome::Refused(refusal.reason())))
    }

    /// Claims the key, and does what is to be done then.
    fn proceed<ReqBody, ResBody>(
        &mut self,
        mut admitted: Result<Admitted, Turned>,
    ) -> impl Future<Output = Answer<Svc, ReqBody, ResBody>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        async move {
            let Admitted {
                body,
                store_key: key,
                fingerprint,
            } = match &mut admitted {
                Ok(admitted) => admitted,
                Err(turned) => return Box::pin(self.turned(turned)).await,
            };
            let key = &*key;
            let outer = self.head.extensions.get::<Execution>();
            if outer.is_some_and(|outer| outer.store_key() == key) {
                // A layer further out runs this very operation: this one would wait for itself.
                return Box::pin(self.pass_on(std::mem::take(body))).await;
            }
            let engine = &self.config.engine;
            let begin = engine.begin(key, fingerprint, &self.stage, || {
                self.inner.let_go();
            });
            match begin.await {
                // Boxed, since a replay needs no room for it.
                Begin::Run(running) => Box::pin(self.run(running, std::mem::take(body))).await,
                Begin::Replay(payload) => Ok(self.config.replay(self.form, key, &payload)),
                Begin::Refuse(taken) => Ok(self.refused(key, taken.into())),
                Begin::StoreFailed(reason, _) => Ok(self.refused(key, reason)),
                Begin::Unprotected => {
                    let response = Box::pin(self.pass_on(std::mem::take(body))).await?;
                    Ok(told(response, Some(key), Outcome::Unprotected))
                }
                // Nobody is there to read this.
                Begin::CallerLeft => Ok(Response::new(ResponseBody::empty())),
            }
        }
    }

    fn refused<B>(&self, key: &StoreKey, reason: Reason) -> Response<ResponseBody<B>> {
        let refusal = self.config.refusal(reason, Some(key.parts().key));
        let response = self.config.refused(self.form, &refusal);
        told(response, Some(key), Outcome::Refused(reason))
    }

    /// What the handler gets. Once: the head is gone then.
    fn request<ReqBody>(&mut self, body: BufferedBody) -> Request<RequestBody<ReqBody>> {
        let (nothing, ()) = Request::new(()).into_parts();
        let head = std::mem::replace(&mut self.head, nothing);
        Request::from_parts(head, RequestBody::buffered(body))
    }

    /// Runs the handler without a record.
    async fn pass_on<ReqBody, ResBody>(
        &mut self,
        body: BufferedBody,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
    {
        let request = self.request(body);
        self.inner.get_ready().await?;
        let response = self.inner.call(request).await?;
        Ok(response.map(ResponseBody::untouched))
    }

    /// Runs the handler under its claim, and records how it ended.
    fn run<ReqBody, ResBody>(
        &mut self,
        mut running: Running,
        body: BufferedBody,
    ) -> impl Future<Output = Answer<Svc, ReqBody, ResBody>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        async move {
            let head_only = self.head.method == Method::HEAD;
            let execution = running.execution().clone();
            let (ending, answer) = match running.watch(self.prepare(&execution)).await {
                Ok(Ok(())) => {
                    execution.answered_by(self.config.clone());
                    self.head.extensions.insert(execution.clone());
                    let work = running.watch(async {
                        let request = self.request(body);
                        let (parts, body) = match self.inner.call(request).await {
                            Ok(response) => response.into_parts(),
                            Err(error) => return (Ending::Failed, Err(error)),
                        };
                        answered(&self.config, head_only, parts, body).await
                    });
                    let ended = work.await;
                    if let Some(answer) = running.committed() {
                        // Whatever came after the commit: this is what a retry gets, too.
                        self.inner.not_called();
                        return Ok(self
                            .config
                            .committed(self.form, execution.store_key(), answer));
                    }
                    match ended {
                        Ok((ending, _)) if running.forgot_to_commit(&ending) => {
                            let config = &self.config;
                            let reason = Reason::NotCommitted;
                            let refusal = config.refusal(reason, Some(execution.key()));
                            (Ending::Failed, Ok(config.refused(self.form, &refusal)))
                        }
                        Ok(ended) => ended,
                        Err(panic) => {
                            telemetry::outcome(Some(execution.store_key()), Outcome::Failed);
                            Box::pin(running.end(Ending::Failed)).await;
                            resume_unwind(panic);
                        }
                    }
                }
                Ok(Err(instead)) => *instead,
                Err(panic) => {
                    self.inner.not_called();
                    Box::pin(running.end(Ending::NotRun)).await;
                    resume_unwind(panic);
                }
            };

            self.inner.not_called();
            let ending = running.settled(ending);
            let completed = matches!(ending, Ending::Completed(_));
            let outcome = match ending {
                Ending::Completed(_) => Outcome::Completed,
                Ending::Rejected => Outcome::Rejected,
                Ending::Failed => Outcome::Failed,
                Ending::NotRun => Outcome::Refused(Reason::Abandoned),
            };
            let ended = running.end(ending).await;
            let (store_key, config) = (execution.store_key(), &*self.config);
            let outcome = match ended {
                Ended::Recorded => outcome,
                Ended::NotReplayable => Outcome::NotReplayable,
                Ended::Unrecorded => Outcome::Unrecorded,
                Ended::Superseded(Some(payload)) => {
                    return Ok(config.replay(self.form, store_key, &payload));
                }
                Ended::Committed(answer) => {
                    return Ok(config.committed(self.form, store_key, answer));
                }
                // Sent, this answer could differ from the one that will be recorded.
                Ended::Superseded(None) if completed => {
                    let refusal = config.refusal(Reason::InProgress, Some(execution.key()));
                    let response = config.refused(self.form, &refusal);
                    return Ok(told(response, Some(store_key), Outcome::Superseded));
                }
                Ended::Superseded(None) => Outcome::Superseded,
            };
            match answer {
                Ok(response) => Ok(told(response, Some(store_key), outcome)),
                // It has no extensions to tell the outcome in.
                Err(error) => {
                    telemetry::outcome(Some(store_key), outcome);
                    Err(error)
                }
            }
        }
    }

    /// Sees that the handler is to run, and that its service is ready. An error is how the
    /// execution ends instead.
    fn prepare<ReqBody, ResBody>(
        &mut self,
        execution: &Execution,
    ) -> impl Future<Output = Result<(), Box<Instead<Svc, ReqBody, ResBody>>>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    {
        async move {
            if let Some(probe) = self.config.takeover.probing()
                && execution.entry() == Entry::Takeover
            {
                match probe(execution.clone(), &self.head).await {
                    Probed::Completed(response) => {
                        return Err(Box::new(probed(&self.config, response)));
                    }
                    Probed::Unknown => {
                        let config = &self.config;
                        let refusal = config.refusal(Reason::Abandoned, Some(execution.key()));
                        return Err(Box::new((
                            Ending::NotRun,
                            Ok(config.refused(self.form, &refusal)),
                        )));
                    }
                    Probed::NotDone => {}
                }
            }
            let ready = self.inner.get_ready().await;
            ready.map_err(|error| Box::new((Ending::NotRun, Err(error))))
        }
    }
}

/// How an execution ends whose handler does not run, and its answer.
type Instead<Svc, ReqBody, ResBody> = (Ending, Answer<Svc, ReqBody, ResBody>);

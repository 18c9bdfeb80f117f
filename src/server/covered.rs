//! One covered request on its way: admission, claim, handler, record, answer.

use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use http::{Method, Request, Response, request::Parts};
use http_body::Body;
use tower::{Service, ServiceExt};

use super::{
    admission::{Admitted, Turned, admit},
    answer::{answered, probed},
    body::{BufferedBody, RequestBody, ResponseBody},
    config::{Config, told},
    extract::InHead,
    takeover::Probed,
};
use crate::{
    engine::{Begin, Ended, Ending, Execution, Running, Stage},
    record::Entry,
    telemetry::{self, Outcome, Reason},
};

/// One covered request on its way.
pub(super) struct Covered<Svc> {
    pub(super) config: Arc<Config>,
    pub(super) stage: Arc<Stage>,
    /// The service that was ready; let go while the request waits for another execution.
    pub(super) ready: Option<Svc>,
    pub(super) spare: Svc,
}

pub(super) type Answer<Svc, ReqBody, ResBody> =
    Result<Response<ResponseBody<ResBody>>, <Svc as Service<Request<RequestBody<ReqBody>>>>::Error>;

#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` has room for each argument twice: as it was given, and as it is used"
)]
impl<Svc> Covered<Svc> {
    pub(super) fn answer<ReqBody, ResBody>(
        mut self,
        parts: Parts,
        body: ReqBody,
        key: InHead,
    ) -> impl Future<Output = Answer<Svc, ReqBody, ResBody>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ReqBody: Body<Data = Bytes>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        async move {
            let admitted = {
                let mut admission = pin!(admit(&self.config, &parts, body, key));
                poll_fn(|cx| {
                    let polled = admission.as_mut().poll(cx);
                    if polled.is_pending() {
                        // A slow client does not hold a place in the inner service.
                        self.ready = None;
                    }
                    polled
                })
                .await
            };
            let Admitted {
                body,
                store_key,
                fingerprint,
            } = match admitted {
                Ok(admitted) => admitted,
                Err(Turned::Refused(refusal)) => {
                    let outcome = Outcome::Refused(refusal.reason());
                    return Ok(told(self.config.refused(&refusal), None, outcome));
                }
                Err(Turned::Keyless(body)) => return self.pass_on(parts, body).await,
            };
            let outer = parts.extensions.get::<Execution>();
            if outer.is_some_and(|outer| *outer.store_key() == store_key) {
                // A layer further out runs this very operation: this one would wait for itself.
                return self.pass_on(parts, body).await;
            }
            let engine = &self.config.engine;
            let begin = engine.begin(&store_key, fingerprint, &self.stage, || {
                self.ready = None;
            });
            match begin.await {
                Begin::Run(running) => self.run(running, parts, body).await,
                Begin::Replay(payload) => Ok(self.config.replay(&store_key, &payload)),
                Begin::Refuse(reason) | Begin::StoreFailed(reason, _) => {
                    let config = &self.config;
                    let key = store_key.parts().key;
                    let response = config.refused(&config.refusal(reason, Some(key)));
                    Ok(told(response, Some(&store_key), Outcome::Refused(reason)))
                }
                Begin::Unprotected => {
                    let response = self.pass_on(parts, body).await?;
                    Ok(told(response, Some(&store_key), Outcome::Unprotected))
                }
                // Nobody is there to read this.
                Begin::CallerLeft => Ok(Response::new(ResponseBody::empty())),
            }
        }
    }

    /// Runs the handler without a record.
    async fn pass_on<ReqBody, ResBody>(
        mut self,
        parts: Parts,
        body: BufferedBody,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
    {
        let request = Request::from_parts(parts, RequestBody::buffered(body));
        let response = match self.ready.take() {
            Some(mut ready) => ready.call(request).await?,
            None => self.spare.oneshot(request).await?,
        };
        Ok(response.map(ResponseBody::untouched))
    }

    /// Runs the handler under its claim, and records how it ended.
    fn run<ReqBody, ResBody>(
        mut self,
        mut running: Running,
        mut parts: Parts,
        body: BufferedBody,
    ) -> impl Future<Output = Answer<Svc, ReqBody, ResBody>>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        async move {
            let head = parts.method == Method::HEAD;
            let execution = running.execution().clone();
            let (store_key, config) = (execution.store_key(), &*self.config);
            let prepared = running.watch(async {
                if let Some(probe) = config.takeover.probing()
                    && execution.entry() == Entry::Takeover
                {
                    match probe(execution.clone(), &parts).await {
                        Probed::Completed(response) => return Err(probed(config, response)),
                        Probed::Unknown => {
                            let key = Some(execution.key());
                            let refusal = config.refusal(Reason::Abandoned, key);
                            return Err((Ending::NotRun, Ok(config.refused(&refusal))));
                        }
                        Probed::NotDone => {}
                    }
                }
                match &mut self.ready {
                    Some(_) => Ok(()),
                    None => match self.spare.ready().await {
                        Ok(_) => Ok(()),
                        Err(error) => Err((Ending::NotRun, Err(error))),
                    },
                }
            });
            let instead = match prepared.await {
                Ok(Ok(())) => None,
                Ok(Err(instead)) => Some(Ok(instead)),
                Err(panic) => Some(Err((Ending::NotRun, panic))),
            };
            let ended = match instead {
                Some(instead) => instead,
                None => {
                    parts.extensions.insert(execution.clone());
                    let request = Request::from_parts(parts, RequestBody::buffered(body));
                    let service = self.ready.as_mut().unwrap_or(&mut self.spare);
                    let work = running.watch(async {
                        match service.call(request).await {
                            Ok(response) => answered(config, head, response).await,
                            Err(error) => (Ending::Failed, Err(error)),
                        }
                    });
                    work.await.map_err(|panic| (Ending::Failed, panic))
                }
            };
            let (ending, answer) = match ended {
                Ok(ended) => ended,
                Err((ending, panic)) => {
                    if matches!(ending, Ending::Failed) {
                        telemetry::outcome(Some(store_key), Outcome::Failed);
                    }
                    running.end(ending).await;
                    resume_unwind(panic);
                }
            };

            let ending = running.settled(ending);
            let completed = matches!(ending, Ending::Completed(_));
            let outcome = match ending {
                Ending::Completed(_) => Outcome::Completed,
                Ending::Rejected => Outcome::Rejected,
                Ending::Failed => Outcome::Failed,
                Ending::NotRun => Outcome::Refused(Reason::Abandoned),
            };
            let outcome = match running.end(ending).await {
                Ended::Recorded => outcome,
                Ended::NotReplayable => Outcome::NotReplayable,
                Ended::Unrecorded => Outcome::Unrecorded,
                Ended::Superseded(Some(payload)) => return Ok(config.replay(store_key, &payload)),
                // Sent, this answer could differ from the one that will be recorded.
                Ended::Superseded(None) if completed => {
                    let refusal = config.refusal(Reason::InProgress, Some(execution.key()));
                    let response = config.refused(&refusal);
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
}

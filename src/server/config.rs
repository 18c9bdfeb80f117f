//! The options of a layer, as its services use them, and the answers that they alone decide.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request::Parts,
    response,
};

#[cfg(feature = "grpc")]
use super::grpc;
use super::{
    body::{ReadLimits, ResponseBody},
    codec,
    extract::{self, Fingerprinter, KeySource, Scope},
    problem::Refusal,
    takeover::Takeover,
    verdict::Verdict,
};
use crate::{
    engine::Engine,
    key::{IdempotencyKey, InvalidKey, StoreKey},
    record::Payload,
    telemetry::{self, Outcome, Reason},
};

/// What says whether an answer is a replay. Not in any standard; several public APIs use it.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

pub(super) type Covers = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
pub(super) type ValidateKey = Arc<dyn Fn(&IdempotencyKey) -> Result<(), InvalidKey> + Send + Sync>;
pub(super) type Judge = Arc<dyn Fn(&response::Parts, Option<&HeaderMap>) -> Verdict + Send + Sync>;
pub(super) type ReplayStatus = Arc<dyn Fn(StatusCode) -> StatusCode + Send + Sync>;
pub(super) type OnRefusal = Arc<dyn Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// In what form something is said: to a caller that it is refused, by an answer what it means.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Http,
    #[cfg(feature = "grpc")]
    Grpc,
}

impl Form {
    /// That of a request or a response with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        #[cfg(feature = "grpc")]
        if grpc::is_grpc(headers) {
            return Self::Grpc;
        }
        let _ = headers;
        Self::Http
    }

    pub(super) fn is_grpc(self) -> bool {
        match self {
            Self::Http => false,
            #[cfg(feature = "grpc")]
            Self::Grpc => true,
        }
    }
}

/// The options of a layer, and what its services share.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) engine: Engine,
    pub(super) scope: Scope,
    pub(super) key: KeySource,
    pub(super) key_required: bool,
    pub(super) validate_key: Option<ValidateKey>,
    pub(super) covers: Option<Covers>,
    pub(super) prefix: String,
    pub(super) scope_by_endpoint: bool,
    pub(super) fingerprinter: Fingerprinter,
    pub(super) judge: Judge,
    pub(super) takeover: Takeover,
    pub(super) replay_status: Option<ReplayStatus>,
    pub(super) replay_set_cookie: bool,
    pub(super) retry_after: Duration,
    pub(super) read_limits: ReadLimits,
    pub(super) response_limit: usize,
    pub(super) response_timeout: Duration,
    pub(super) docs_url: Option<String>,
    pub(super) on_refusal: Option<OnRefusal>,
}

impl Config {
    /// Upgrades are not requests with an answer that could be given again.
    pub(super) fn covers(&self, parts: &Parts) -> bool {
        let chosen = match &self.covers {
            None => parts.method == Method::POST || parts.method == Method::PATCH,
            Some(covers) => covers(parts),
        };
        chosen && !extract::is_upgrade(parts)
    }

    /// Whether a request is certainly not covered. Most that are not can be told so.
    pub(super) fn passes<B>(&self, request: &Request<B>) -> bool {
        let method = request.method();
        self.covers.is_none() && *method != Method::POST && *method != Method::PATCH
            || !self.key_required && self.key.is_absent(request.headers())
    }

    pub(super) fn refusal(&self, reason: Reason, key: Option<&str>) -> Refusal {
        let key = key.and_then(|key| IdempotencyKey::new(key).ok());
        Refusal::new(reason, key, None, self.retry_after)
    }

    pub(super) fn invalid(&self, error: &InvalidKey) -> Refusal {
        let detail = Some(error.to_string());
        Refusal::new(Reason::KeyInvalid, None, detail, self.retry_after)
    }

    pub(super) fn validate(&self, key: &str) -> Result<(), Refusal> {
        match &self.validate_key {
            None => Ok(()),
            Some(validate) => IdempotencyKey::new(key)
                .and_then(|key| validate(&key))
                .map_err(|error| self.invalid(&error)),
        }
    }

    pub(super) fn refused<B>(&self, form: Form, refusal: &Refusal) -> Response<ResponseBody<B>> {
        let docs_url = self.docs_url.as_deref();
        let response = match form {
            Form::Http => refusal.response(docs_url),
            #[cfg(feature = "grpc")]
            Form::Grpc => grpc::refused(refusal, docs_url),
        };
        match &self.on_refusal {
            None => response,
            Some(on_refusal) => on_refusal(refusal, response),
        }
        .map(ResponseBody::full)
    }

    pub(super) fn replay<B>(
        &self,
        form: Form,
        key: &StoreKey,
        payload: &Payload,
    ) -> Response<ResponseBody<B>> {
        if !payload.is_replayable() {
            let reason = Reason::NotReplayable;
            let response = self.refused(form, &self.refusal(reason, None));
            return told(response, Some(key), Outcome::Refused(reason));
        }
        let answer = match codec::decode(payload) {
            Ok(answer) => answer,
            Err(error) => {
                telemetry::unreadable(key, &error);
                let reason = Reason::StoreUnavailable;
                let response = self.refused(form, &self.refusal(reason, None));
                return told(response, Some(key), Outcome::Refused(reason));
            }
        };
        let body = ResponseBody::buffered(answer.body, answer.trailers, answer.exact, None);
        let mut response = Response::new(body);
        *response.status_mut() = match &self.replay_status {
            // To gRPC it says nothing, and has to be 200.
            Some(map) if !form.is_grpc() => map(answer.status),
            _ => answer.status,
        };
        *response.headers_mut() = answer.headers;
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
        told(response, Some(key), Outcome::Replayed)
    }
}

/// Puts the outcome where outer layers and logs find it.
pub(super) fn told<B>(
    mut response: Response<B>,
    key: Option<&StoreKey>,
    outcome: Outcome,
) -> Response<B> {
    telemetry::outcome(key, outcome);
    response.extensions_mut().insert(outcome);
    response
}

//! Refusals: what the layer answers where the handler does not run.
//!
//! A [`Refusal`] says why, and turns into a problem document ([RFC 9457]):
//!
//! ```text
//! HTTP/1.1 409 Conflict
//! content-type: application/problem+json
//! content-language: en
//! cache-control: no-store
//! retry-after: 1
//!
//! {"type":"urn:tower-idempotency:in-progress",
//!  "title":"A request with this idempotency key is being processed","status":409,
//!  "detail":"The idempotency key \"order-1\" belongs to a request that is …",
//!  "error":"in_progress","retry_after":1}
//! ```
//!
//! `type` tells the problem, for programs. It is `urn:tower-idempotency:` and the name of the
//! reason ([`Reason::as_str`]), which never changes and leads nowhere; or, where the layer was
//! given a URL of documentation, that URL with the name as its fragment, and then a `Link` header
//! with `rel="describedby"` names the URL too. `error` is the same name with underscores.
//! `retry_after` is there where a retry can succeed, in whole seconds, and equals the header.
//! `no-store`, since a document may name the caller's key, and a refusal is over soon.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{key::IdempotencyKey, telemetry::Reason};

/// Why a request was refused, and what its caller is told.
///
/// `Debug` shows the reason and leaves out the key and the detail, which may name it (U19).
#[derive(Clone)]
pub struct Refusal {
    reason: Reason,
    key: Option<IdempotencyKey>,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// `detail` replaces the reason's own. `retry_after` counts only where the reason allows a
    /// retry, and becomes whole seconds, at least one.
    pub(crate) fn new(
        reason: Reason,
        key: Option<IdempotencyKey>,
        detail: Option<String>,
        retry_after: Duration,
    ) -> Self {
        let about = about(reason);
        let detail = detail.map_or_else(|| default_detail(reason, key.as_ref()), Cow::Owned);
        Self {
            reason,
            key,
            detail,
            retry_after: about.may_retry.then(|| whole_seconds(retry_after)),
        }
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The HTTP status that goes with the reason. Not for a gRPC call, whose status is always 200.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        about(self.reason).status
    }

    /// What the caller is told, in English. It may name the caller's own key.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// When a retry may succeed, in whole seconds; `None` where it cannot without a change.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The caller's own key, in clear, where one was read.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_ref().map(IdempotencyKey::as_str)
    }

    /// The problem document. `docs_url` is an absolute URL; a fragment in it is cut off in `type`.
    ///
    /// A URL that cannot stand in a header gives no `Link`.
    pub(crate) fn response(&self, docs_url: Option<&str>) -> Response<Bytes> {
        let About { title, status, .. } = about(self.reason);
        let name = self.reason.as_str();

        let mut json = String::with_capacity(256 + self.detail.len());
        json.push_str("{\"type\":");
        match docs_url {
            Some(url) => {
                let page = url.split('#').next().unwrap_or_default();
                push_string(&mut json, &format!("{page}#{name}"));
            }
            None => push_string(&mut json, &format!("urn:tower-idempotency:{name}")),
        }
        json.push_str(",\"title\":");
        push_string(&mut json, title);
        // Writing to a `String` cannot fail.
        let _ = write!(json, ",\"status\":{}", status.as_u16());
        json.push_str(",\"detail\":");
        push_string(&mut json, &self.detail);
        json.push_str(",\"error\":");
        push_string(&mut json, &name.replace('-', "_"));
        if let Some(after) = self.retry_after {
            let _ = write!(json, ",\"retry_after\":{}", after.as_secs());
        }
        json.push('}');

        let mut response = Response::new(Bytes::from(json));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if let Some(link) = docs_url.and_then(link) {
            headers.insert(header::LINK, link);
        }
        response
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("reason", &self.reason)
            .field("status", &self.status())
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

struct About {
    status: StatusCode,
    title: &'static str,
    /// Whether the same request may succeed later.
    may_retry: bool,
}

fn about(reason: Reason) -> About {
    let (status, may_retry, title) = match reason {
        Reason::KeyMissing => (
            StatusCode::BAD_REQUEST,
            false,
            "An idempotency key is required",
        ),
        Reason::KeyInvalid => (
            StatusCode::BAD_REQUEST,
            false,
            "The idempotency key is not valid",
        ),
        Reason::CallerUnknown => (
            StatusCode::FORBIDDEN,
            false,
            "The request does not say who the caller is",
        ),
        Reason::BodyTooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            false,
            "The request body is too large",
        ),
        Reason::BodyTooSlow => (
            StatusCode::REQUEST_TIMEOUT,
            false,
            "The request body did not arrive in time",
        ),
        Reason::BodyBroken => (
            StatusCode::BAD_REQUEST,
            false,
            "The request body is incomplete",
        ),
        Reason::InProgress => (
            StatusCode::CONFLICT,
            true,
            "A request with this idempotency key is being processed",
        ),
        Reason::Mismatch => (
            StatusCode::UNPROCESSABLE_ENTITY,
            false,
            "The idempotency key was used for another request",
        ),
        // A retry may meet a server of the version that made the record.
        Reason::OtherAlgorithm => (
            StatusCode::CONFLICT,
            true,
            "The request cannot be compared with the one that used this idempotency key",
        ),
        Reason::NotReplayable => (
            StatusCode::CONFLICT,
            false,
            "The request was processed and its answer cannot be given again",
        ),
        Reason::Abandoned => (
            StatusCode::CONFLICT,
            false,
            "An earlier request with this idempotency key did not finish",
        ),
        Reason::StoreUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            true,
            "The idempotency key cannot be checked at the moment",
        ),
        Reason::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            true,
            "The service is overloaded",
        ),
        // A retry runs the handler again, which is the same program.
        Reason::NotCommitted => (
            StatusCode::INTERNAL_SERVER_ERROR,
            false,
            "The request was not seen through to its end",
        ),
    };
    About {
        status,
        title,
        may_retry,
    }
}

fn default_detail(reason: Reason, key: Option<&IdempotencyKey>) -> Cow<'static, str> {
    let rest = match reason {
        Reason::KeyMissing => {
            return "Send a key that is unique to this operation, and the same key with every retry \
                    of it."
                .into();
        }
        Reason::KeyInvalid => {
            return "A key has 1 to 255 characters, each visible ASCII or a space, and is sent once."
                .into();
        }
        Reason::CallerUnknown => {
            return "Idempotency keys belong to a caller, and this request does not identify one."
                .into();
        }
        Reason::BodyTooLarge => {
            return "The body is longer than this resource takes together with an idempotency key."
                .into();
        }
        Reason::BodyTooSlow => {
            return "The body must be complete before the request is processed. Nothing was done."
                .into();
        }
        Reason::BodyBroken => {
            return "The body broke off before its end. Nothing was done.".into();
        }
        Reason::StoreUnavailable => {
            return "Nothing was done. Retry with the same key.".into();
        }
        Reason::Overloaded => {
            return "Nothing was done, since a limit of this service is reached. Retry with the same \
                    key."
                .into();
        }
        Reason::NotCommitted => {
            return "The service answered without knowing that its work was committed. Retry with the \
                    same key to learn what became of it."
                .into();
        }
        Reason::InProgress => {
            "belongs to a request that is being processed. Retry with the same key to get its answer."
        }
        Reason::Mismatch => {
            "was used for a request with another payload. Use a new key for a new operation."
        }
        Reason::OtherAlgorithm => {
            "was used with another version of this service, which compares payloads otherwise. \
             Retry with the same key."
        }
        Reason::NotReplayable => {
            "belongs to a request that was processed. Its answer was too large to keep, or a \
             stream. Do not send it again under a new key."
        }
        Reason::Abandoned => {
            "belongs to a request whose processing was cut off, and whether it took effect is \
             unknown. It has to be resolved by the operator of this service."
        }
    };
    match key {
        Some(key) => format!("The idempotency key \"{}\" {rest}", key.as_str()).into(),
        None => format!("The idempotency key {rest}").into(),
    }
}

/// `Retry-After` knows whole seconds only, and none at all would mean at once.
fn whole_seconds(after: Duration) -> Duration {
    let seconds = after.as_secs();
    let begun = u64::from(after.subsec_nanos() > 0);
    Duration::from_secs(seconds.saturating_add(begun).max(1))
}

fn link(url: &str) -> Option<HeaderValue> {
    if url.contains(['<', '>', ' ']) {
        return None;
    }
    HeaderValue::from_str(&format!("<{url}>; rel=\"describedby\"")).ok()
}

/// Appends `text` as a JSON string.
fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\x1f' => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            _ => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const ALL: [Reason; 13] = [
        Reason::KeyMissing,
        Reason::KeyInvalid,
        Reason::CallerUnknown,
        Reason::BodyTooLarge,
        Reason::BodyTooSlow,
        Reason::BodyBroken,
        Reason::InProgress,
        Reason::Mismatch,
        Reason::OtherAlgorithm,
        Reason::NotReplayable,
        Reason::Abandoned,
        Reason::StoreUnavailable,
        Reason::Overloaded,
    ];

    fn refusal(reason: Reason) -> Refusal {
        let key = IdempotencyKey::new("order \"7\" \\").unwrap();
        Refusal::new(reason, Some(key), None, Duration::from_millis(1500))
    }

    fn document(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).unwrap()
    }

    /// I07, I08, I09, I10, S13: each refusal's status, and whether it says when to retry.
    #[test]
    fn i07_i08_i09_i10_each_refusal_is_a_problem_document() {
        let table = [
            (400, false),
            (400, false),
            (403, false),
            (413, false),
            (408, false),
            (400, false),
            (409, true),
            (422, false),
            (409, true),
            (409, false),
            (409, false),
            (503, true),
            (503, true),
        ];
        for (reason, (status, retry)) in ALL.into_iter().zip(table) {
            let refusal = refusal(reason);
            let response = refusal.response(None);
            assert_eq!(response.status(), status, "{reason}");
            assert_eq!(refusal.status(), status);
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/problem+json");
            assert_eq!(headers["content-language"], "en");
            assert_eq!(headers["cache-control"], "no-store");
            assert!(!headers.contains_key("link"));
            assert_eq!(
                headers.get("retry-after").map(HeaderValue::as_bytes),
                retry.then_some(&b"2"[..]),
                "{reason}"
            );
            assert_eq!(
                refusal.retry_after(),
                retry.then_some(Duration::from_secs(2))
            );

            let mut expected = json!({
                "type": format!("urn:tower-idempotency:{reason}"),
                "title": about(reason).title,
                "status": status,
                "detail": refusal.detail(),
                "error": reason.as_str().replace('-', "_"),
            });
            if retry {
                expected["retry_after"] = 2.into();
            }
            assert_eq!(document(&response), expected);
        }
    }

    /// S29: error, status code, seconds and a message that names the key.
    #[test]
    fn s29_an_in_progress_refusal_names_the_key() {
        let refusal = refusal(Reason::InProgress);
        let document = document(&refusal.response(None));
        assert_eq!(document["error"], "in_progress");
        assert_eq!(document["status"], 409);
        assert_eq!(document["retry_after"], 2);
        let detail = document["detail"].as_str().unwrap();
        assert!(detail.contains("\"order \"7\" \\\""), "{detail}");
        assert_eq!(refusal.key(), Some("order \"7\" \\"));
    }

    /// I03, I08: the URL of the documentation reaches clients.
    #[test]
    fn i03_i08_the_docs_url_is_linked_and_makes_the_type() {
        let refusal = refusal(Reason::KeyMissing);
        let response = refusal.response(Some("https://example.com/docs#keys"));
        assert_eq!(
            document(&response)["type"],
            "https://example.com/docs#key-missing"
        );
        assert_eq!(
            response.headers()["link"],
            "<https://example.com/docs#keys>; rel=\"describedby\""
        );
        for bad in ["https://example.com/\r\nx: y", "a>; rel=\"x\"", "a b"] {
            let response = refusal.response(Some(bad));
            assert!(!response.headers().contains_key("link"), "{bad:?}");
            document(&response);
        }
    }

    #[test]
    fn a_detail_of_the_callers_replaces_the_default() {
        let refusal = Refusal::new(
            Reason::KeyInvalid,
            None,
            Some("the key is empty".to_owned()),
            Duration::ZERO,
        );
        assert_eq!(refusal.detail(), "the key is empty");
        assert_eq!((refusal.key(), refusal.retry_after()), (None, None));
        assert_eq!(
            document(&refusal.response(None))["detail"],
            "the key is empty"
        );
    }

    #[test]
    fn retry_after_is_whole_seconds_and_at_least_one() {
        for (given, seconds) in [
            (Duration::ZERO, 1),
            (Duration::from_nanos(1), 1),
            (Duration::from_secs(1), 1),
            (Duration::from_millis(2001), 3),
            (Duration::MAX, u64::MAX),
        ] {
            assert_eq!(whole_seconds(given).as_secs(), seconds, "{given:?}");
        }
    }

    /// U19: debug output holds neither the key nor the detail that names it.
    #[test]
    fn u19_debug_holds_no_key() {
        let shown = format!("{:?}", refusal(Reason::InProgress));
        assert!(!shown.contains("order"), "{shown}");
        assert!(shown.contains("InProgress"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_json(text in any::<String>()) {
            let mut json = String::new();
            push_string(&mut json, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}

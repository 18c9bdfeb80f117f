//! A result as the bytes of a record, and back: the [`Codec`].
//!
//! What is recorded is one byte that says "a function's result, in this version", and then what the
//! codec made. The [`Payload`]'s code is zero, which is no HTTP status: neither side takes the
//! other's record for its own (U18).

use std::{
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::record::Payload;

/// Not the version of a recorded HTTP answer, nor one that it will soon have.
const VERSION: u8 = 0xF1;

/// What stands in the place of the HTTP status.
const CODE: u16 = 0;

/// Turns results into bytes and back.
///
/// [`Json`] is the one that comes with the crate. Write one for another format, or to do without
/// the feature `json`:
///
/// ```
/// use std::num::ParseIntError;
///
/// use tower_idempotency::{MemoryStore, Operation, function::Codec};
///
/// struct Decimal;
///
/// impl Codec<u64> for Decimal {
///     type Error = ParseIntError;
///
///     fn encode(&self, value: &u64) -> Result<Vec<u8>, ParseIntError> {
///         Ok(value.to_string().into_bytes())
///     }
///
///     fn decode(&self, bytes: &[u8]) -> Result<u64, ParseIntError> {
///         String::from_utf8_lossy(bytes).parse()
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let next = Operation::with_codec("next-invoice", MemoryStore::new(), Decimal);
/// let first = next.call("order-1").run(async |_| Ok::<_, std::fmt::Error>(41)).await?;
/// let again = next.call("order-1").run(async |_| Ok::<_, std::fmt::Error>(42)).await?;
/// assert_eq!((first.into_value(), again.into_value()), (41, 41));
/// # Ok(())
/// # }
/// ```
///
/// # Contract
///
/// What `encode` made, `decode` must read, also after a later release of your program changed the
/// type: records live as long as the time to live says. An error must not name the value: it is
/// logged (U19). A panic counts as an error.
pub trait Codec<T>: Send + Sync + 'static {
    /// Why a value could not be written or read: an error, or a
    /// `Box<dyn Error + Send + Sync>` where there are several.
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// The bytes of a value. There may be none.
    ///
    /// # Errors
    ///
    /// The work is done by then, so its key counts as done; the caller gets the value, and the
    /// calls after it get [`RunError::NotReplayable`](super::RunError::NotReplayable).
    fn encode(&self, value: &T) -> Result<Vec<u8>, Self::Error>;

    /// The value of bytes that [`encode`](Self::encode) made, in this version or an earlier one.
    ///
    /// # Errors
    ///
    /// The caller gets [`RunError::Unreadable`](super::RunError::Unreadable), and nothing runs.
    fn decode(&self, bytes: &[u8]) -> Result<T, Self::Error>;
}

/// Results as JSON, through `serde` (feature `json`).
///
/// A replayed value is what `serde` makes of the first one, so let values be such that JSON gives them
/// back. Fields that are skipped are not in it. JSON has one `null`: `Some(())`, `Some(None)` and
/// `Some(NaN)` come back as `None`. A `NaN` alone, and what is nested deeper than 127 levels, cannot
/// be read back. The last bit of a float may differ, unless your program turns on `float_roundtrip`
/// of `serde_json`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    type Error = BoxError;

    fn encode(&self, value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(value)?)
    }

    /// The error names the place, and not what is there (U19).
    fn decode(&self, bytes: &[u8]) -> Result<T, BoxError> {
        use serde_json::error::Category;

        serde_json::from_slice(bytes).map_err(|error| {
            // Its own message quotes what it found.
            let fault = match error.classify() {
                Category::Data => "of another type",
                Category::Syntax | Category::Eof | Category::Io => "not JSON",
            };
            let (line, column) = (error.line(), error.column());
            format!("{fault}, at line {line} and column {column}").into()
        })
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// What is recorded for a result: without the result itself where its bytes are over the limit.
pub(super) fn encode<T>(
    codec: &impl Codec<T>,
    value: &T,
    limit: usize,
) -> Result<Payload, BoxError> {
    let encoded = guarded(|| codec.encode(value))?;
    if encoded.len() > limit {
        return Ok(not_replayable());
    }
    // Of exactly the right size, for as long as the record lives (U10).
    let mut bytes = Vec::with_capacity(1 + encoded.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&encoded);
    Ok(Payload::new(CODE, bytes.into()))
}

/// What is recorded for a result that cannot be.
pub(super) fn not_replayable() -> Payload {
    Payload::not_replayable(CODE)
}

/// Reads a result that can be given again.
pub(super) fn decode<T>(codec: &impl Codec<T>, payload: &Payload) -> Result<T, BoxError> {
    match (payload.code, payload.bytes.split_first()) {
        (CODE, Some((&VERSION, encoded))) => guarded(|| codec.decode(encoded)),
        _ => Err(NotAResult.into()),
    }
}

fn guarded<T, E: Into<BoxError>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, BoxError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => answer.map_err(Into::into),
        Err(_panic) => Err("the codec panicked".into()),
    }
}

/// An HTTP layer recorded it, or another version of this crate.
#[derive(Debug)]
struct NotAResult;

impl fmt::Display for NotAResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the record is not a function's result, or one of another version")
    }
}

impl Error for NotAResult {}

#[cfg(test)]
mod tests {
    use super::*;

    struct Roomy;

    impl Codec<()> for Roomy {
        type Error = fmt::Error;

        fn encode(&self, (): &()) -> Result<Vec<u8>, fmt::Error> {
            let mut bytes = Vec::with_capacity(1 << 20);
            bytes.extend_from_slice(b"value");
            Ok(bytes)
        }

        fn decode(&self, bytes: &[u8]) -> Result<(), fmt::Error> {
            assert_eq!(bytes, b"value");
            Ok(())
        }
    }

    /// U10: a record keeps no more memory than it needs, whatever the codec asked for.
    #[test]
    fn s28_u10_a_record_holds_its_own_bytes() {
        let payload = encode(&Roomy, &(), 5).unwrap();
        assert!(payload.is_replayable());
        decode(&Roomy, &payload).unwrap();
        let bytes = payload.bytes.try_into_mut().unwrap();
        assert_eq!((bytes.len(), bytes.capacity()), (6, 6));
    }
}

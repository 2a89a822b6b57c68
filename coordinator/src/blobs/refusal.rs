//! What a server that speaks S3 means when it does not do what it was asked to: cause and remedy.

use super::bucket_place::Place;
use super::objects::Fault;

/// Most of a server's own words that are shown.
const MAX_WORDS: usize = 300;

/// The error code in a server's answer.
pub(super) fn code_of(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code)
}

/// The fault of a code, or of an answer without one.
pub(super) fn explained(code: Option<&str>, text: &str, place: &Place) -> Fault {
    let (bucket, place) = (&place.bucket, place.server());
    match code {
        Some("NoSuchBucket") => {
            Fault::Refused(format!("{place} has no bucket `{bucket}`; create it, or correct the setting `store`"))
        }
        Some(code @ ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "NotSignedUp")) => {
            Fault::Refused(format!(
                "{place} refuses the key ({code}); correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file in `store_credentials`"
            ))
        }
        Some(code @ ("AccessDenied" | "AllAccessDisabled")) => Fault::Refused(format!(
            "{place} does not let this key use the bucket `{bucket}` ({code}); allow it to list the bucket and to read, write and delete \
             objects and uploads there"
        )),
        Some("RequestTimeTooSkewed") => Fault::Refused(format!(
            "{place} says that this machine's clock is wrong by more than a quarter of an hour; set it, and keep it by NTP"
        )),
        Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            Fault::Refused(format!("the bucket `{bucket}` is not in this region; correct `store_region` or `store_endpoint`"))
        }
        Some("SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout") => {
            Fault::Unreached(format!("{place} is overloaded or down ({})", code.unwrap_or_default()))
        }
        Some("QuotaExceeded" | "StorageFull" | "XMinioStorageFull") => Fault::Full,
        Some(code) => Fault::Failed(format!("{place} answers {code}: {}", words(text))),
        None if text.contains("error sending request") || text.contains("timed out") || text.contains("HTTP error") => {
            Fault::Unreached(format!("{place} cannot be reached: {}", words(text)))
        }
        None if text.contains("status code: 403") || text.contains("403 Forbidden") => {
            Fault::Refused(format!("{place} refuses this key; correct the key, and what it may do with the bucket `{bucket}`"))
        }
        None if text.contains("status code: 5") => Fault::Unreached(format!("{place} is down: {}", words(text))),
        None => Fault::Failed(words(text)),
    }
}

fn words(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_remedy() {
        let place = Place::parse("s3://models/a", "http://127.0.0.1:9000", "").expect("a place");
        let answer = |code: &str| format!("Server returned non-2xx status code: 403: <Error><Code>{code}</Code></Error>");
        for (code, word) in [
            ("NoSuchBucket", "create it"),
            ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            ("AccessDenied", "allow it to list"),
            ("RequestTimeTooSkewed", "NTP"),
            ("AuthorizationHeaderMalformed", "store_region"),
        ] {
            let text = answer(code);
            let fault = explained(code_of(&text), &text, &place);
            assert!(matches!(&fault, Fault::Refused(cause) if cause.contains(word)), "{fault:?}");
        }
        assert!(matches!(explained(Some("SlowDown"), "", &place), Fault::Unreached(_)));
        let long = "x".repeat(10_000);
        assert!(matches!(explained(None, &long, &place), Fault::Failed(cause) if cause.len() == MAX_WORDS));
    }
}

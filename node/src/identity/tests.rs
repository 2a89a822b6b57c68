//! Tokens and identities as text: what they read back, and a storm of damage.

use super::*;
use crate::transport::Fingerprint;

fn token() -> Token {
    let addresses = vec!["c1.example:7450".to_owned(), "[2001:db8::1]:7450".to_owned()];
    let seed = TokenSeed::generate().expect("random");
    seed.into_token((Id([1; 16]), Fingerprint::from_bytes([2; 32])), Id([3; 16]), 1_800_000_000, addresses)
}

fn facts(token: &Token) -> impl PartialEq + std::fmt::Debug + use<> {
    (token.cluster, token.pin, token.id, token.expires_unix_s, token.addresses.clone(), token.to_line().to_string())
}

/// SplitMix64.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}

#[test]
fn a_token_reads_back_in_any_case_and_between_blanks() {
    let token = token();
    let line = token.to_line();
    for text in [line.to_string(), line.to_ascii_uppercase(), format!(" \t{}\r\n", *line)] {
        assert_eq!(facts(&text.parse().expect("reads")), facts(&token));
    }
    assert!(line.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "one word for a shell: {}", line.len());
    assert_eq!(token.places().expect("addresses").len(), 2);
}

#[test]
fn a_token_prints_its_secret_nowhere_but_in_its_line() {
    let token = token();
    let line = token.to_line();
    let printed = format!("{token:?} {:?}", TokenSeed::generate().expect("random"));
    assert!(!printed.contains(line.get(20..40).expect("long")), "{printed}");
    assert!(!printed.contains("seed:"), "{printed}");
}

/// Every single change of a letter is noticed, and so is every cut.
#[test]
fn every_typo_and_every_cut_is_refused() {
    let line = token().to_line().to_string();
    for cut in 0..line.len() {
        assert!(line[..cut].parse::<Token>().is_err(), "{cut}");
    }
    for at in 0..line.len() {
        let other = if line.as_bytes()[at] == b'q' { "r" } else { "q" };
        let mut typo = line.clone();
        typo.replace_range(at..=at, other);
        let error = typo.parse::<Token>().expect_err("typo").to_string();
        assert!(error.contains("copy") && !error.contains(&line[20..40]), "{error}");
    }
}

/// Any text gives a token that writes back as it was read, or an error that says what to do.
#[test]
fn reading_is_total() {
    let line = token().to_line().to_string();
    let mut state = 0x70_6b_65_6e;
    let alphabet: Vec<char> = "obelysk1aq7 \u{0}é\u{1F980}=-_A\n".chars().collect();
    let (mut read, mut refused) = (0, 0);
    for round in 0..60_000 {
        let mut text: Vec<char> = if round % 3 == 0 { Vec::new() } else { line.chars().collect() };
        for _ in 0..random(&mut state) % 6 {
            let at = random(&mut state) % (text.len() + 1);
            match random(&mut state) % 3 {
                0 => text.insert(at, alphabet[random(&mut state) % alphabet.len()]),
                1 => text.truncate(at.max(1)),
                _ => text.extend(std::iter::repeat_n('a', random(&mut state) % 40)),
            }
        }
        match text.iter().collect::<String>().parse::<Token>() {
            Ok(token) => {
                assert_eq!(token.to_line().to_string(), line);
                read += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(';'), "no remedy: {error}");
                refused += 1;
            }
        }
    }
    assert!(read > 1000 && refused > 10_000, "{read} {refused}");
}

/// Payloads with a right checksum and wrong content: the checks behind the checksum are reached too.
#[test]
fn whole_tokens_without_sense_are_refused() {
    let seal = |payload: &[u8]| {
        let mut hasher = blake3::Hasher::new();
        let check = *hasher.update(b"obelysk token checksum\0").update(payload).finalize().as_bytes();
        let text = data_encoding::BASE32_NOPAD.encode(&[payload, &check[..4]].concat());
        format!("obelysk1{}", text.to_ascii_lowercase())
    };
    let head = [&[1_u8][..], &[0; 16], &[0; 32], &[0; 16], &[7; 32], &[0; 8]].concat();
    let with = |rest: &[u8]| seal(&[&head[..], rest].concat());
    let good = with(b"\x01\x03\0a:1");
    good.parse::<Token>().expect("the layout written out here is the one that is read");
    assert_eq!(seal(&[2]).parse::<Token>().expect_err("newer"), TokenError::Version { theirs: 2 });
    let cases: [&[u8]; 9] = [
        b"",
        b"\0",
        b"\x09",
        b"\x01",
        b"\x01\x04\0a:1",
        b"\x01\x03\0a:1x",
        b"\x01\x03\0a:0",
        b"\x01\x03\0a 1",
        b"\x01\x03\0a\xff1",
    ];
    for rest in cases {
        let error = with(rest).parse::<Token>().expect_err("senseless");
        assert!(matches!(error, TokenError::Senseless(_)), "{rest:?}: {error}");
    }
    let mut state = 5;
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random(&mut state) % 200).map(|_| random(&mut state) as u8).collect();
        let _ = seal(&bytes).parse::<Token>();
        let _ = with(&bytes).parse::<Token>();
    }
}

fn credential() -> Credential {
    let token = token();
    Credential {
        cluster: token.cluster,
        pin: token.pin,
        addresses: token.addresses,
        key: NodeKey::generate().expect("random"),
        certificate: vec![1, 2, 3],
        authority: vec![4, 5],
        issued_unix_s: unix_now(),
        expires_unix_s: unix_now() + 1000,
    }
}

#[test]
fn an_identity_outlives_the_process_and_goes_before_a_spent_token() {
    let place = tempfile::tempdir().expect("folder");
    let store = IdentityStore::folder(place.path()).expect("free");
    let error = Identity::start(&store, None).expect_err("nothing there").to_string();
    assert!(error.contains("obelysk token create"), "{error}");
    assert!(matches!(Identity::start(&store, Some(token())), Ok(Identity::New { .. })));
    let kept = credential();
    store.save(&kept).expect("saved");
    for given in [None, Some(token())] {
        match Identity::start(&store, given) {
            Ok(Identity::Member(found)) => assert_eq!((found.id(), found.certificate), (kept.id(), vec![1, 2, 3])),
            other => panic!("{other:?}"),
        }
    }
    // A token of another cluster, or an identity past its end, lets the token in.
    let mut elsewhere = token();
    elsewhere.pin = Fingerprint::from_bytes([9; 32]);
    assert!(matches!(Identity::start(&store, Some(elsewhere)), Ok(Identity::New { .. })));
    store.save(&Credential { expires_unix_s: unix_now() - 1, ..kept }).expect("saved");
    assert!(matches!(Identity::start(&store, Some(token())), Ok(Identity::New { .. })));
}

#[test]
fn a_damaged_identity_is_an_error_that_quotes_nothing() {
    let text = credential().to_text().expect("writes").to_string();
    let key = text.lines().find(|l| l.starts_with("key = ")).expect("a key").split('"').nth(1).expect("quoted");
    Credential::from_text(&text).expect("reads");
    for at in (0..text.len()).step_by(7) {
        for damaged in [text[..at].to_owned(), [&text[..at], "\"", &text[at..]].concat(), text.replace(&key[at % 64..][..8], "")]
        {
            if let Err(error) = Credential::from_text(&damaged) {
                assert!(!error.to_string().contains(&key[..8]), "{error}");
            }
        }
    }
    let foreign = text.replace(key, &data_encoding::HEXLOWER.encode(&NodeKey::generate().expect("random").to_pkcs8()));
    assert!(Credential::from_text(&foreign).expect_err("another key").to_string().contains("another node"));
}

//! Golden vectors: values that must never change within a protocol version. A change here is a new version.

use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::{Blake2s, ForkKind, HashSuite, Poseidon252, Seed, Transcript, fork};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// One call of everything, in an order no protocol step uses.
fn script<S: HashSuite>() -> [String; 4] {
    let mut t = Transcript::<S>::new("golden");
    t.absorb_bytes("bytes", b"\x00\x01\x02");
    t.absorb_u64("number", 7);
    t.absorb_felts("felts", &[QM31::from_u32_unchecked(1, 2, 3, 4), QM31::from_u32_unchecked(5, 6, 7, 2_147_483_646)]);
    let drawn = t.draw_many("challenge", 3);
    let positions = t.draw_positions("positions", 18, 4);
    t.accept_pow(3, 11);
    let child = fork::<S>(&Seed(t.digest()), 1, 1, ForkKind::Segment, 5);
    let symbols: Vec<M31> = (0..5).map(M31::from_u32_unchecked).collect();
    let leaf = S::leaf(&symbols);
    [format!("{drawn:?}"), format!("{positions:?}"), hex(&child.digest()), hex(&S::node(&leaf, &S::leaf(&[])))]
}

#[test]
fn blake2s_transcript() {
    let expected = [
        "[(1942125043 + 1025352022i) + (43400066 + 1793196236i)u, (550014921 + 2016037990i) + (1341701924 + 1683377598i)u, (1390457547 + 240291993i) + (113515587 + 2131718417i)u]",
        "[120250, 215813, 122976, 18617]",
        "d7b16b98e02795bfe34c518d38ebf5f70e27a4ebd9e0b4a7e0597b9fe9cc2e2c",
        "148e3214c355cda8ddcf12de48251d846476f5bcefdd3107c62fa7cf92267517",
    ];
    assert_eq!(script::<Blake2s>(), expected);
}

#[test]
fn poseidon_transcript() {
    let expected = [
        "[(1269343973 + 1706262119i) + (181185506 + 1303330540i)u, (657472979 + 997510668i) + (442039271 + 1684075046i)u, (2093847603 + 1973627412i) + (1426871529 + 374818462i)u]",
        "[138502, 17497, 95776, 153102]",
        "00ab736045863d855341a2fe9572aceb4c299d81713b87206bdc6e2b47fe6529",
        "07bd0eebb4fcbce839dde80e8adeb343c372ada8c8120e8696c309d4e206a322",
    ];
    assert_eq!(script::<Poseidon252>(), expected);
}

//! Golden vectors of the encoder, taken from S-two 2.3.0's own `evaluate`: message, then the word in stored order.

use obelysk_protocol::field::M31;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::kernels::{CodeShape, CommitKernels};

const VECTORS: [(&[u32], &[u32]); 3] = [
    (
        &[120_634_309, 188_549_081],
        &[124_989_076, 116_279_542, 116_279_542, 124_989_076, 2_051_157_784, 337_594_481, 337_594_481, 2_051_157_784],
    ),
    (
        &[320_438_511, 1_446_177_876, 1_109_190_748, 1_442_045_705],
        &[1_146_781_486, 1_826_457_838, 1_918_086_331, 685_395_683, 383_357_215, 337_600_756, 2_128_496_306, 579_783_414],
    ),
    (
        &[1_189_587_544, 1_082_441_360, 648_844_652, 1_958_668_151],
        &[
            1_016_733_876,
            2_057_901_518,
            628_230_391,
            1_055_484_391,
            192_600_183,
            429_814_268,
            773_302_079,
            1_215_149_999,
            767_599_448,
            1_272_508_950,
            155_594_445,
            415_163_686,
            2_024_443_579,
            521_974_731,
            1_810_712_704,
            401_219_162,
        ],
    ),
];

fn encode<K: CommitKernels>(k: &K, message: &[u32], len: usize) -> Vec<u32> {
    let code = CodeShape { h: message.len().trailing_zeros(), blowup_log: (len / message.len()).trailing_zeros() };
    let rows = k.base(message.iter().map(|&v| M31::from_u32_unchecked(v)).collect());
    let positions: Vec<usize> = (0..len).collect();
    k.words_at(&k.encode_base(&rows, code), code, &positions).iter().map(|v| v.0).collect()
}

#[test]
fn words_are_those_of_s_two() {
    for (message, word) in VECTORS {
        assert_eq!(encode(&Reference, message, word.len()), word);
        assert_eq!(encode(&Simd::default(), message, word.len()), word);
    }
}

#[test]
fn executor_and_circuit_have_the_same_tables() {
    // Written twice on purpose: the executor defines the function, the circuit is what is proved.
    let (at, before) = obelysk_model::tables::exp_table();
    let proved = obelysk_protocol::circuit::exp_tables();
    assert!(*proved.at == at && *proved.before == before);
    let recip = obelysk_model::tables::rsqrt_table();
    let (index, proved) = obelysk_protocol::circuit::norm::reciprocal_table();
    assert_eq!(index[0], i32::try_from(obelysk_protocol::circuit::norm::INDEX_BEGIN).unwrap());
    assert_eq!(proved[..recip.len()], recip);
    assert_eq!(recip.len() as i64, obelysk_protocol::circuit::norm::INDEX_END - obelysk_protocol::circuit::norm::INDEX_BEGIN);
}

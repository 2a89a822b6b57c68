//! Kernels of the sumchecks. Columns are random: kernels compute, whatever the columns hold.

use crate::chance::Rng;
use crate::circuits::circuits;
use obelysk_cuda::backend::Column;
use obelysk_cuda::{CudaBackend, Device};
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::{self, Circuit, Coord, Eval, Factor, MatrixShape};
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::verifier::points::Points;
use obelysk_shard::kernels::CommitKernels;
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::reference::Reference;
use std::collections::{BTreeMap, BTreeSet};

/// Columns of a circuit may be long; the reference takes extension vectors of all of them.
const LONGEST_LOG: usize = 12;

/// Matrices with the logs of their tiles: folded by digits or not, rows and columns that end anywhere, sums near their bounds.
const MATRICES: [(usize, usize, usize, usize); 7] =
    [(16, 4, 2, 1), (48, 24, 4, 3), (300, 130, 2, 1), (1, 3, 0, 0), (64, 2048, 6, 7), (1028, 40, 2, 2), (8, 70_000, 3, 4)];

pub fn layouts<D: Device>(k: &CudaBackend<D>) {
    let [ours, theirs] = k.layouts();
    assert_eq!(ours, theirs);
}

pub fn vectors<D: Device>(k: &CudaBackend<D>) {
    for n in [0usize, 1, 2, 5, 8, 11] {
        let mut rng = Rng(n as u64);
        let (v, w, r, column) = (rng.felts(1 << n), rng.felts(1 << n), rng.felt(), rng.bases(1 << n));
        let (dv, dw, dc) = (k.vector(&v), k.vector(&w), k.column(&column));
        assert_eq!((k.len(&dv), k.first(&dv)), (v.len(), v[0]));
        let point = rng.felts(n);
        assert_eq!(k.to_host(&k.eq(&point)), Reference.eq(&point));
        assert_eq!(k.evaluate(&dc, &dw), Reference.evaluate(&column, &w));
        let other = rng.bases(1 << n);
        let terms = [(&column, r), (&other, v[0]), (&column, w[0])];
        let d_other = k.column(&other);
        assert_eq!(k.to_host(&k.combine(n, &[(&dc, r), (&d_other, v[0]), (&dc, w[0])])), Reference.combine(n, &terms));
        if n > 0 {
            assert_eq!(k.to_host(&k.fold(&dv, r)), Reference.fold(&v, r));
            assert_eq!(k.to_host(&k.drop_low(&dv)), Reference.drop_low(&v));
            let rest = rng.felts(1 << (n - 1));
            assert_eq!(k.linear_round(&k.vector(&rest), &dv), Reference.linear_round(&rest, &v));
        }
    }
}

pub fn products<D: Device>(k: &CudaBackend<D>) {
    assert_eq!(ProofKernels::product_round(k, &[]), ProofKernels::product_round(&Reference, &[]));
    for n in [1usize, 3, 6, 12] {
        let mut rng = Rng(90 + n as u64);
        let factors: Vec<Vec<QM31>> = (0..4).map(|_| rng.felts(1 << n)).collect();
        let device: Vec<_> = factors.iter().map(|f| k.vector(f)).collect();
        for count in 1..=4 {
            let expected = ProofKernels::product_round(&Reference, &factors[..count].iter().collect::<Vec<_>>());
            assert_eq!(ProofKernels::product_round(k, &device[..count].iter().collect::<Vec<_>>()), expected, "{n} {count}");
        }
    }
}

pub fn matrices<D: Device>(k: &CudaBackend<D>) {
    for (inputs, outputs, tile_k, tile_n) in MATRICES {
        let mut rng = Rng(inputs as u64);
        let shape = MatrixShape { inputs, outputs };
        let (data, weight) = (rng.bytes(inputs * outputs), rng.felts(outputs.next_power_of_two()));
        let vars = inputs.next_power_of_two().trailing_zeros() as usize;
        assert_eq!(k.to_host(&k.fold_matrix(shape, &data, &weight, vars)), Reference.fold_matrix(shape, &data, &weight, vars));
        let low = rng.felts(1 << tile_n);
        let (tiles, expected) = (k.fold_tiles(shape, &data, &low), Reference.fold_tiles(shape, &data, &low));
        assert_eq!(k.to_host(&tiles), expected);
        let high = rng.felts((outputs >> tile_n).next_power_of_two());
        let sums = k.sum_tiles(shape, &tiles, &high, vars);
        assert_eq!(k.to_host(&sums), Reference.sum_tiles(shape, &expected, &high, vars));
        let point = rng.felts(tile_k);
        assert_eq!(k.tile_values(&tiles, &point), Reference.tile_values(&expected, &point));
    }
}

fn columns<D: Device>(k: &CudaBackend<D>, c: &Circuit, rng: &mut Rng) -> Both<D> {
    let host: Vec<Vec<M31>> = c.columns.iter().map(|col| rng.bases(1 << col.log_size)).collect();
    let device = host.iter().map(|v| k.column(v)).collect();
    (host, device)
}

/// The whole tree, layer by layer, each with all its rounds.
fn tree<D: Device>(k: &CudaBackend<D>, c: &Circuit, rng: &mut Rng) {
    let (host, device) = columns(k, c, rng);
    let (alpha, beta) = (rng.felt(), rng.felt());
    let mut theirs = vec![Reference.leaves(c, &host, alpha, beta)];
    let mut ours = vec![k.leaves(c, &device, alpha, beta)];
    for i in 1..c.tree_log() {
        theirs.push(Reference.next_layer(&theirs[i - 1]));
        ours.push(k.next_layer(&ours[i - 1]));
    }
    for (i, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
        let vars = c.tree_log() - 1 - i;
        assert_eq!(k.children(&ours), Reference.children(&theirs), "{} layer {i}", c.name);
        if vars == 0 {
            continue;
        }
        let (point, mu) = (rng.felts(vars), rng.felt());
        let (mut layer, mut expected) = (k.gkr_start(ours, &point, mu), Reference.gkr_start(theirs, &point, mu));
        let mut bind = None;
        for round in 0..vars {
            assert_eq!(k.gkr_round(&mut layer, bind), Reference.gkr_round(&mut expected, bind), "{} {i} {round}", c.name);
            bind = Some(rng.felt());
        }
        let last = rng.felt();
        assert_eq!(k.gkr_end(layer, last), Reference.gkr_end(expected, last));
    }
}

pub fn lookups<D: Device>(k: &CudaBackend<D>) {
    let mut rng = Rng(11);
    for c in circuits().iter().filter(|c| c.tree_log() > 0) {
        tree(k, &smaller(c), &mut rng);
    }
}

/// The same circuit without its largest tables: they differ in nothing but their size.
fn smaller(c: &Circuit) -> Circuit {
    let mut c = c.clone();
    let kept: Vec<usize> = (0..c.tables.len()).filter(|&i| c.tables[i].log_size <= LONGEST_LOG).collect();
    c.lookups.retain(|l| kept.contains(&l.table) && l.log_size <= LONGEST_LOG);
    for l in &mut c.lookups {
        l.table = kept.iter().position(|&i| i == l.table).unwrap();
    }
    c.tables = kept.iter().map(|&i| c.tables[i].clone()).collect();
    c
}

pub fn chips<D: Device>(k: &CudaBackend<D>) {
    let (mut rng, mut seen) = (Rng(12), BTreeSet::new());
    for c in &circuits() {
        let (host, device) = columns(k, c, &mut rng);
        let mut groups: BTreeMap<usize, Vec<(QM31, Vec<Source>)>> = BTreeMap::new();
        let exprs = c.constraints.iter().map(|x| (&x.expr, x.log_size));
        let inputs = c.lookups.iter().flat_map(|l| l.inputs.iter().map(move |e| (e, l.log_size)));
        for (e, log) in exprs.chain(inputs).filter(|(_, log)| *log <= LONGEST_LOG) {
            groups.entry(log).or_default().extend(e.terms().filter(|t| !t.factors.is_empty()).map(|t| (rng.felt(), t.factors)));
        }
        for (log, terms) in groups {
            seen.extend(terms.iter().flat_map(|t| &t.1).map(std::mem::discriminant).map(|d| format!("{d:?}")));
            let mut chip = k.chip(c, log, &terms, &device);
            let mut expected = Reference.chip(c, log, &terms, &host);
            for round in (0..log).rev() {
                let (rest, r) = (rng.felts(1 << round), rng.felt());
                assert_eq!(
                    k.chip_round(&chip, &k.vector(&rest)),
                    Reference.chip_round(&expected, &rest),
                    "{} {log} {round}",
                    c.name
                );
                k.chip_fold(&mut chip, r);
                Reference.chip_fold(&mut expected, r);
            }
            assert_eq!(k.chip_value(&chip), Reference.chip_value(&expected));
        }
    }
    assert_eq!(seen.len(), 4, "toys have columns, parameters, public columns and masks in their expressions: {seen:?}");
}

/// A circuit's columns, here and on the device.
type Both<D> = (Vec<Vec<M31>>, Vec<Column<D>>);

fn compare<D: Device>(k: &CudaBackend<D>, (host, device): &Both<D>, points: &Points, eval: &Eval, vars: usize) {
    let expected = Reference.claim_vector(eval, host, points, vars).map_err(|e| e.to_string());
    let found = k.claim_vector(eval, device, points, vars).map(|v| k.to_host(&v)).map_err(|e| e.to_string());
    assert_eq!(found, expected, "{eval:?}");
}

pub fn claims<D: Device>(k: &CudaBackend<D>) {
    let mut rng = Rng(13);
    let points = Points { rho: rng.felts(24), kappa: rng.felts(24), boundary_in: rng.felts(24), boundary_out: rng.felts(24) };
    for c in &circuits() {
        let both = columns(k, c, &mut rng);
        for product in &c.products {
            for factor in &product.factors {
                if let Factor::Claim(i) = factor {
                    compare(k, &both, &points, &c.claims[*i], product.vars);
                }
            }
        }
    }
    // Long contractions, in every place.
    let column = || segment::Column { name: String::new(), log_size: 11 };
    let both = columns(k, &Circuit { columns: vec![column(), column(), column()], ..Circuit::default() }, &mut rng);
    let kept = |kappa: [usize; 2]| {
        let coord = move |i| kappa.iter().position(|&k| k == i).map_or(Coord::Rho(i), Coord::Kappa);
        (0..11).map(coord).collect::<Vec<_>>()
    };
    for kappa in [[0, 1], [9, 10], [3, 7]] {
        for (hi, vars) in [(vec![Coord::Kappa(2), Coord::Kappa(3)], 4), (vec![Coord::Rho(12), Coord::Half], 2)] {
            compare(k, &both, &points, &Eval { blocks: vec![0, 1, 2], lo: kept(kappa), hi }, vars);
        }
    }
    // A coordinate that is not there is the same error.
    compare(k, &both, &points, &Eval { blocks: vec![0], lo: vec![Coord::Rho(99); 11], hi: Vec::new() }, 0);
}

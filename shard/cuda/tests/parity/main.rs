//! Twins: every kernel on a device returns the reference's bytes. On the processor always, in several orders of threads; on a
//! card where there is one.
//!
//! `REQUIRE_KERNELS=1` makes a machine without a C++ compiler a failure instead of a skip, `REQUIRE_GPU=1` one without a card.

mod chance;
mod checked;
mod circuits;
mod commit;
mod places;
mod pocket;
mod proof;
mod shim;
mod whole;

/// One test per check and place.
macro_rules! checks {
    ($module:ident: $($name:ident),+ $(,)?) => {
        mod $module {
            mod on_the_host {
                $(#[test]
                fn $name() {
                    for host in crate::places::hosts() {
                        crate::$module::$name(&obelysk_cuda::CudaBackend::new(host));
                    }
                })+
            }

            mod on_a_card {
                $(#[test]
                fn $name() {
                    if let Some(card) = crate::places::card() {
                        crate::$module::$name(&obelysk_cuda::CudaBackend::new(card));
                    }
                })+
            }
        }
    };
}

mod twins {
    checks!(commit: words_and_trees, int8_words, combinations, extension_vectors, nonces, other_suites);
    checks!(proof: layouts, vectors, products, matrices, lookups, chips, claims);
}

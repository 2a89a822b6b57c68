//! Every decoder family from a published folder to a verified proof: import, quantise, store, register, generate, prove. And
//! provers who are honest about another model than the registered one.

#[path = "../../../tests/soundness/equations.rs"]
#[expect(dead_code, reason = "shared with the soundness tests")]
mod equations;
mod fidelity;
mod forged;
#[path = "../decoder/forger.rs"]
#[expect(dead_code, reason = "shared with the toy decoders' tests")]
mod forger;
mod models;
#[path = "../decoder/place.rs"]
mod place;
mod whole;

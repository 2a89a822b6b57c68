//! Cards on the command line: opened before work begins, so that what is missing is said at once, with code 2.

use super::args::DeviceArgs;
use super::exit::Failure;
use super::home::Home;
use super::output::{Out, size};
use obelysk_cuda::Device as _;
use obelysk_cuda::card::Card;
use obelysk_node::DeviceChoice;

/// The device that options name.
pub fn chosen(args: &DeviceArgs) -> Result<DeviceChoice, Failure> {
    let device = args.device.as_deref().map_or(Ok(DeviceChoice::Cpu), str::parse).map_err(Failure::input)?;
    if args.gpu_only && device == DeviceChoice::Cpu {
        return Err(Failure::input("--gpu-only needs a card: give --device cuda:0, or leave it out"));
    }
    Ok(device)
}

/// Opens a card, if one was chosen; its compiled kernels lie in the home folder.
pub fn open(home: &Home, device: DeviceChoice) -> Result<Option<Card>, Failure> {
    Ok(device.open(&home.cache().join("cuda"))?)
}

/// Says what a card is.
pub fn tell(out: &Out, card: Option<&Card>) {
    if let Some(facts) = card.map(Card::facts) {
        let (budget, memory) = (size(facts.budget as u64), size(facts.memory as u64));
        out.field("card", format_args!("{}, sm_{}, {budget} of {memory}", facts.name, facts.architecture));
    }
}

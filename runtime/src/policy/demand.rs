//! Lets the device fault in what it touches.

use super::{LaunchEvent, Place, Policy};

/// Lets the device fault in what it touches. For kernels that touch little of what they declare.
#[derive(Clone, Copy, Default, Debug)]
pub struct Demand;

impl Policy for Demand {
    fn name(&self) -> &'static str {
        "demand"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        places.extend(event.args.iter().map(|a| a.advised(event.device).unwrap_or(Place::Demand)));
    }
}

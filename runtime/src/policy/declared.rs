//! Brings what a launch declares to the device before it runs, as far as it fits.

use super::{LaunchEvent, Place, Policy};

/// Brings what a launch declares to the device before it runs, as far as it fits. The working set is known, so one copy in bulk beats a fault a granule.
#[derive(Clone, Copy, Default, Debug)]
pub struct Declared;

impl Policy for Declared {
    fn name(&self) -> &'static str {
        "declared"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        places.extend(event.args.iter().map(|a| a.advised(event.device).unwrap_or(Place::Migrate)));
    }
}

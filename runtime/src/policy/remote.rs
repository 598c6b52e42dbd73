//! Lets the device use pages where they are.

use super::{LaunchEvent, Place, Policy};

/// Lets the device use pages where they are. For devices that reach host memory as fast as their own, and for data touched once.
#[derive(Clone, Copy, Default, Debug)]
pub struct Remote;

impl Policy for Remote {
    fn name(&self) -> &'static str {
        "remote"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        places.extend(event.args.iter().map(|a| a.advised(event.device).unwrap_or(Place::Remote)));
    }
}

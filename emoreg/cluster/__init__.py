"""Ray clusters: joined from one of their machines, submitted to from outside, asked what they have; what trials share there."""

//go:build race

package logqueue

// raceEnabled: the race detector allocates for its own purposes.
const raceEnabled = true

//go:build race

package peer_test

// raceDetector: sync.Pool drops what it is given at random, so allocations
// can't be counted.
const raceDetector = true

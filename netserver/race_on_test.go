//go:build race

package netserver

// raceDetector: sync.Pool drops what it is given at random, so allocations
// can't be counted.
const raceDetector = true

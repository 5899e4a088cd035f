//go:build !race

package netserver

const raceDetector = false

package ioring_test

import (
	"testing"

	"github.com/redoubt-storage/redoubt/ioring"
	"github.com/redoubt-storage/redoubt/ioring/enginetest"
)

func opens(t *testing.T, o ioring.Options) enginetest.Open {
	return func(t *testing.T, fd int, regions [][]byte) ioring.Engine {
		t.Helper()
		o.Regions = regions
		e, how, err := ioring.Open(fd, o)
		if err != nil {
			t.Fatal(err)
		}
		if t.Log(how); e.Name() != o.Engine {
			t.Fatalf("got engine %s, want %s", e.Name(), o.Engine)
		}
		return e
	}
}

// TestEngines runs the suite on every engine inside this binary, as production
// opens it and with the narrowest queue there is.
func TestEngines(t *testing.T) {
	for _, name := range ioring.Available() {
		t.Run(name, func(t *testing.T) {
			t.Run("default", func(t *testing.T) { enginetest.Run(t, opens(t, ioring.Options{Engine: name})) })
			t.Run("narrow", func(t *testing.T) {
				enginetest.Run(t, opens(t, ioring.Options{Engine: name, Depth: 1, Workers: 1}))
			})
		})
	}
}

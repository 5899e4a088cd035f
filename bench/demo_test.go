package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemo runs the whole story in small, twice on the same directory: devices,
// a node of its own that is killed, recovery, verification, check.
func TestDemo(t *testing.T) {
	b := syntheticTrace(1000, 200, 5)
	dir := filepath.Join(t.TempDir(), "data")
	o := DemoOptions{Dir: dir, Binary: testBinary(t), Devices: 2, DeviceSize: 64 << 20, Memory: rigMemory, Trace: opener(t, b.end()),
		nodeFlags: []string{"-coalesce-age", rigMaxAge.String()}}
	for round, want := range [][]string{
		{"making 2 devices", "volume demo-1", "SIGKILL when", "no damage", "byte-identical"},
		{"there already", "deleted volume demo-1 of an earlier run, 1 segments", "volume demo-2", "byte-identical"},
	} {
		var out, progress bytes.Buffer
		o.Out, o.Err = &out, &progress
		if err := RunDemo(t.Context(), o); err != nil {
			t.Fatalf("round %d: %v\n%s%s", round, err, &out, &progress)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("round %d: not a word of %q in\n%s", round, w, &out)
			}
		}
		if !strings.Contains(progress.String(), "the node is away") {
			t.Errorf("round %d: the replay never missed the node:\n%s", round, &progress)
		}
	}

	t.Run("an unfinished format is not guessed at", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "device1")); err != nil {
			t.Fatal(err)
		}
		if err := RunDemo(t.Context(), o); err == nil || !strings.Contains(err.Error(), "remove the directory") {
			t.Fatalf("%v", err)
		}
	})
	t.Run("a short disk is said", func(t *testing.T) {
		o := o
		o.Dir, o.DeviceSize = t.TempDir(), 1<<50
		if err := RunDemo(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make room") {
			t.Fatalf("%v", err)
		}
	})
}

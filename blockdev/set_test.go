package blockdev

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
)

// TestCheckSet runs a script. Each line of the input is a superblock, as path
// device cluster node position count.
func TestCheckSet(t *testing.T) {
	datadriven.RunTest(t, "testdata/set", func(t *testing.T, c *datadriven.TestData) string {
		var set []Superblock
		for line := range strings.Lines(c.Input) {
			var s Superblock
			var dev, cluster, node byte
			if _, err := fmt.Sscan(line, &s.Path, &dev, &cluster, &node, &s.Position, &s.Count); err != nil {
				t.Fatal(err)
			}
			s.Device, s.Cluster, s.Node = redoubt.DeviceID(id(dev)), redoubt.ClusterID(id(cluster)), redoubt.NodeID(id(node))
			set = append(set, s)
		}
		err := CheckSet(set)
		if err == nil {
			return "a set\n"
		}
		if !errors.Is(err, redoubt.ErrForeign) && !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("an error of no kind: %v", err)
		}
		return err.Error() + "\n"
	})
}

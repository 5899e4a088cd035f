package blockdev

import (
	"fmt"
	"strings"

	"github.com/redoubt-storage/redoubt"
)

// CheckSet checks that the superblocks, in the order in which a node names its
// devices, are those of one node: all of them, each once, each in its place.
// The error matches redoubt.ErrForeign and names every path that is wrong.
func CheckSet(supers []Superblock) error {
	if len(supers) == 0 {
		return fmt.Errorf("blockdev: no devices: %w", redoubt.ErrInvalid)
	}
	ref := majority(supers)
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	at := make(map[int]int) // position -> index of the first that claims it
	for i := range supers {
		s := &supers[i]
		first, taken := at[s.Position]
		switch {
		case s.Cluster != ref.Cluster:
			complain("%s is foreign: it belongs to cluster %v, the others to %v", s.Path, s.Cluster, ref.Cluster)
			continue
		case s.Node != ref.Node:
			complain("%s is foreign: it belongs to node %v, the others to %v", s.Path, s.Node, ref.Node)
			continue
		case s.Count != ref.Count:
			complain("%s is foreign: it is one of %d devices, the others of %d", s.Path, s.Count, ref.Count)
			continue
		case taken && supers[first].Device == s.Device:
			complain("%s is a duplicate: it is device %v, as is %s", s.Path, s.Device, supers[first].Path)
			continue
		case taken:
			complain("%s is a duplicate: it has position %d, as has %s", s.Path, s.Position, supers[first].Path)
			continue
		case s.Position != i:
			complain("%s is swapped: it stands at place %d and has position %d", s.Path, i, s.Position)
		}
		at[s.Position] = i
	}
	for p := range ref.Count {
		if _, ok := at[p]; !ok {
			complain("the device with position %d of %d is missing", p, ref.Count)
		}
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("blockdev: the %d devices are no set: %s: %w", len(supers), strings.Join(wrong, "; "), redoubt.ErrForeign)
}

// majority returns the superblock whose node most of them name, so that the
// stranger is called foreign and not the natives.
func majority(supers []Superblock) *Superblock {
	type home struct {
		cluster redoubt.ClusterID
		node    redoubt.NodeID
		count   int
	}
	votes := make(map[home]int)
	best, most := &supers[0], 0
	for i := range supers {
		h := home{supers[i].Cluster, supers[i].Node, supers[i].Count}
		votes[h]++
		if votes[h] > most {
			best, most = &supers[i], votes[h]
		}
	}
	return best
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
)

func format(ctx context.Context, args []string) error {
	fs := newFlags("format", "Make files or block devices into the devices of one node. Name all of the node's\n"+
		"devices in one call: each learns its place among them. A missing file is created\n"+
		"and written in full; what looks used is refused without -force.\n\n"+
		"  redoubt format -size 1GiB /var/lib/redoubt/d0 /var/lib/redoubt/d1\n"+
		"  redoubt format /dev/nvme1n1 /dev/nvme2n1")
	fileSize := size(0)
	extent := size(blockdev.DefaultExtentSize)
	fs.Var(&fileSize, "size", "size of a file that is created, such as 1GiB; an existing file or block device has its own")
	fs.Var(&extent, "extent-size", "size of the extents that log and pages are given, a power of two")
	force := fs.Bool("force", false, "format what looks used: everything on it is lost")
	cluster := fs.String("cluster", "", "ID of the cluster, 32 hex digits; default: a new one")
	asJSON := fs.Bool("json", false, "print the result as JSON")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errors.New("name the devices behind the flags, such as d0 d1 d2")
	}
	id := redoubt.NewID()
	if *cluster != "" {
		var err error
		if id, err = redoubt.ParseID(*cluster); err != nil {
			return err
		}
	}
	node := redoubt.NodeID(redoubt.NewID())
	var done []blockdev.Superblock
	for i, path := range fs.Args() {
		sb, err := blockdev.Format(ctx, path, blockdev.FormatOptions{
			Size: int64(fileSize), ExtentSize: int64(extent), Cluster: redoubt.ClusterID(id), Node: node,
			Position: i, Count: fs.NArg(), Force: *force, Progress: progress(path),
		})
		if err != nil {
			return err
		}
		done = append(done, sb)
		if !*asJSON {
			fmt.Printf("formatted %s: device %v, %d extents of %s, logical block %d\n", path, sb.Device, sb.ExtentCount, sizeText(sb.ExtentSize), sb.BlockSize)
		}
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"cluster": redoubt.ID(id).String(), "node": node.String(), "devices": done})
	}
	fmt.Printf("node %v of cluster %v has %d devices\n", node, redoubt.ID(id), len(done))
	return nil
}

func sizeText(n int64) string {
	s := size(n)
	return s.String()
}

// progress returns a function that shows how far a long work on path is: a bar
// on a terminal, now and then a line elsewhere.
func progress(path string) func(done, total int64) {
	tty := isTerminal(os.Stderr)
	next := time.Now().Add(time.Second)
	return func(done, total int64) {
		if total == 0 || done < total && time.Now().Before(next) {
			return
		}
		next = time.Now().Add(200 * time.Millisecond)
		if !tty {
			next = next.Add(5 * time.Second)
			if done < total {
				fmt.Fprintf(os.Stderr, "%s: %d %%\n", path, done*100/total)
			}
			return
		}
		fmt.Fprintf(os.Stderr, "\r%s: %3d %%", path, done*100/total)
		if done == total {
			fmt.Fprintf(os.Stderr, "\r\033[K")
		}
	}
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/coalescer"
	"github.com/redoubt-storage/redoubt/node"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// TestMain lets the test's own binary stand for redoubt: what a test starts as
// "BINARY node" and "BINARY check" is this program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "node":
			err = nodeMain(os.Args[2:])
		case "check":
			err = checkMain(os.Args[2:])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// nodeMain is "redoubt node", as far as childNode uses it.
func nodeMain(args []string) error {
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	var o node.Options
	devices := fs.String("devices", "", "")
	fs.StringVar(&o.Listen, "listen", "", "")
	fs.StringVar(&o.HTTP, "http", "", "")
	fs.Int64Var(&o.Memory, "memory", 0, "")
	fs.DurationVar(&o.Coalesce.MaxAge, "coalesce-age", 0, "")
	fs.Float64Var(&o.LogShare, "log-share", 0, "")
	fs.StringVar(&o.IOEngine, "io-engine", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.Devices = strings.Split(*devices, ",")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	n, err := node.Open(ctx, o)
	if err != nil {
		return err
	}
	<-ctx.Done()
	closing, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return n.Close(closing)
}

// checkMain is "redoubt check": it fails when a device is damaged.
func checkMain(paths []string) error {
	for _, path := range paths {
		dev, err := blockdev.Open(path, blockdev.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		damage, err := checkDevice(dev)
		if err = errors.Join(err, dev.Close()); err != nil || damage > 0 {
			return fmt.Errorf("%s: %d damaged places: %w", path, damage, err)
		}
	}
	fmt.Printf("%d devices, no damage\n", len(paths))
	return nil
}

func checkDevice(dev *blockdev.Device) (damage int, err error) {
	small, err := slab.New(slab.Options{Size: 64 << 10, Count: 4})
	if err != nil {
		return 0, err
	}
	windows, err := slab.New(slab.Options{Size: 512 << 10, Count: 8})
	if err != nil {
		return 0, err
	}
	store, err := segfile.Open(dev, segfile.Options{Device: dev.Super().Device, Small: small, Windows: windows, ReadOnly: true, MaxPages: 1 << 40}, dev.Super().Clean)
	if err != nil {
		return 0, err
	}
	r, err := store.Check(func(int, int) {})
	if err != nil {
		return 0, err
	}
	return len(r.Damage), nil
}

// rigMemory is what the test's nodes may take, rigMaxAge how long they leave log
// alone before they make pages of it.
const (
	rigMemory = 128 << 20
	rigMaxAge = 50 * time.Millisecond
)

// newDevices makes n small devices in a directory of the test.
func newDevices(t testing.TB, n int) []string {
	t.Helper()
	dir := t.TempDir()
	cluster, id := redoubt.ClusterID(redoubt.NewID()), redoubt.NodeID(redoubt.NewID())
	var all []string
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("device%d", i))
		_, err := blockdev.Format(t.Context(), path, blockdev.FormatOptions{Size: 64 << 20, ExtentSize: 1 << 20,
			Cluster: cluster, Node: id, Position: i, Count: n})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, path)
	}
	return all
}

// A rig is a node inside the test, which can be closed and opened again at the
// same address.
type rig struct {
	t       testing.TB
	devices []string
	*node.Node
	addr, http string
}

func newRig(t testing.TB, devices int) *rig {
	t.Helper()
	r := &rig{t: t, devices: newDevices(t, devices), addr: "127.0.0.1:0", http: "127.0.0.1:0"}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	n, err := node.Open(context.Background(), node.Options{Devices: r.devices, Listen: r.addr, HTTP: r.http, Memory: rigMemory,
		Coalesce: coalescer.Options{MaxAge: rigMaxAge}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		r.t.Fatal(err)
	}
	r.Node, r.addr, r.http = n, n.Addr().String(), n.HTTPAddr().String()
}

func (r *rig) close() {
	r.t.Helper()
	if r.Node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Node.Close(ctx); err != nil {
		r.t.Errorf("closing the node: %v", err)
	}
	r.Node = nil
}

// segments counts the segments that the node has.
func (r *rig) segments() (n int) {
	for _, l := range r.Status().Lanes {
		n += l.Segments
	}
	return n
}

// testBinary is the program that TestMain makes a node of.
func testBinary(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

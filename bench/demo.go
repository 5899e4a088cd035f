package bench

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/peer"
	"golang.org/x/sys/unix"
)

// bundledTrace is the redo of a real PostgreSQL run; see testdata/README.md.
//
//go:embed testdata/pgbench.trace.gz
var bundledTrace []byte

// DemoOptions describe the demo. Any field left zero takes the default in its
// comment.
type DemoOptions struct {
	// Dir is where the devices and the node's log are. Default ./data.
	Dir string
	// Binary is the program that runs as "BINARY node" and "BINARY check".
	// Default this program.
	Binary string
	// Devices and DeviceSize are how many loopback files are made, and of how
	// many bytes. Default 8 of 512 MiB.
	Devices    int
	DeviceSize int64
	// Memory bounds the node's memory. Default 512 MiB.
	Memory int64
	// Trace opens the trace. Default the bundled one.
	Trace func() (io.ReadCloser, error)
	// Out and Err get the story and the progress. Default nobody.
	Out, Err io.Writer

	nodeFlags []string // more of them, for tests
}

// A demo is a running RunDemo.
type demo struct {
	DemoOptions
	sum     TraceSummary
	devices []string
	node    *childNode
	volume  string
	step    int

	killed     uint64 // records that were durable then
	killedAt   redoubt.LSN
	killErr    error
	before     nodeSample // the node's metrics when it was killed
	restarted  chan error
	serving    time.Duration // from the start of the process until it served
	recovering time.Duration // of that, the slowest device's log
}

// RunDemo tells the whole story: it formats devices, starts a node, replays a
// trace, kills the node half-way, starts it again, goes on from what was
// acknowledged, waits for coalescing, verifies every byte, and checks the
// devices. What it leaves in Dir the next run uses again.
func RunDemo(ctx context.Context, o DemoOptions) error {
	setZero(&o.Dir, "./data")
	setZero(&o.Devices, 8)
	setZero(&o.DeviceSize, 512<<20)
	setZero(&o.Memory, 512<<20)
	if o.Trace == nil {
		o.Trace = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(bundledTrace)), nil }
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Binary == "" {
		var err error
		if o.Binary, err = os.Executable(); err != nil {
			return fmt.Errorf("bench: demo: which program is this?: %w", err)
		}
	}
	d := &demo{DemoOptions: o, restarted: make(chan error, 1)}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("bench: demo: %w", err)
	}
	return nil
}

// say tells the next step of the story.
func (d *demo) say(format string, args ...any) {
	d.step++
	fmt.Fprintf(d.Out, "%d. "+format+"\n", append([]any{d.step}, args...)...)
}

func (d *demo) run(ctx context.Context) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	logPath := filepath.Join(d.Dir, "node.log")
	var err error
	if d.node, err = newChildNode(d.Binary, d.devices, d.Memory, logPath, d.nodeFlags...); err != nil {
		return err
	}
	defer d.node.end()
	took, err := d.node.start(ctx)
	if err != nil {
		return err
	}
	d.say("node on %s, metrics on http://%s/metrics, log in %s (serving after %.1f s)", d.node.addr, d.node.http, logPath, took.Seconds())
	if err := d.chooseVolume(ctx); err != nil {
		return err
	}
	d.say("replaying %d records in %d commits of a PostgreSQL run into volume %s; SIGKILL to the node half-way", d.sum.Records, d.sum.Commits, d.volume)
	res, err := d.replay(ctx)
	if err != nil {
		return err
	}
	after, err := scrape(ctx, d.node.http)
	if err != nil {
		return err
	}
	if err := d.node.stop(); err != nil {
		return err
	}
	d.say("SIGTERM: the node has shut down cleanly")
	if err := d.check(ctx); err != nil {
		return err
	}
	d.table(res, after)
	return nil
}

// prepare reads the trace and makes the devices that are not there.
func (d *demo) prepare(ctx context.Context) error {
	f, err := d.Trace()
	if err != nil {
		return err
	}
	defer f.Close()
	if d.sum, err = ScanTrace(f); err != nil {
		return err
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return err
	}
	for i := range d.Devices {
		d.devices = append(d.devices, filepath.Join(d.Dir, fmt.Sprintf("device%d", i)))
	}
	good, bad, err := inspectDevices(d.devices)
	total := sizeText(float64(int64(d.Devices) * d.DeviceSize))
	switch {
	case err != nil:
		return err
	case good == d.Devices:
		d.say("%d devices in %s, %s in all: there already", d.Devices, d.Dir, total)
		return nil
	case good > 0:
		return fmt.Errorf("%d of the %d devices in %s are there and the others are not: an unfinished format; remove the directory and run this again", good, d.Devices, d.Dir)
	}
	return d.format(ctx, bad, total)
}

// inspectDevices counts the files that are devices, and those that are there
// and are none.
func inspectDevices(paths []string) (good, bad int, err error) {
	for _, p := range paths {
		dev, err := blockdev.Open(p, blockdev.Options{ReadOnly: true, LockWait: -1})
		switch {
		case err == nil:
			dev.Close()
			good++
		case errors.Is(err, redoubt.ErrBusy):
			return good, bad, fmt.Errorf("%w (is another demo running?)", err)
		case !errors.Is(err, os.ErrNotExist):
			bad++
		}
	}
	return good, bad, nil
}

func (d *demo) format(ctx context.Context, bad int, total string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.Dir, &fs); err != nil {
		return fmt.Errorf("free space of %s: %w", d.Dir, err)
	}
	need, free := uint64(d.Devices)*uint64(d.DeviceSize), fs.Bavail*uint64(fs.Bsize)
	if bad == 0 && free < need+need/50 {
		return fmt.Errorf("%d files of %s need %s in %s, and %s are free: make room, or put them on another disk (redoubt demo -dir DIR)",
			d.Devices, sizeText(float64(d.DeviceSize)), total, d.Dir, sizeText(float64(free)))
	}
	d.say("making %d devices, files of %s in %s, %s in all, every byte written; they stay there for the next run (rm -r %s frees them)",
		d.Devices, sizeText(float64(d.DeviceSize)), d.Dir, total, d.Dir)
	cluster, node := redoubt.ClusterID(redoubt.NewID()), redoubt.NodeID(redoubt.NewID())
	p := NewProgress(d.Err, "format")
	defer p.Done()
	for i, path := range d.devices {
		_, err := blockdev.Format(ctx, path, blockdev.FormatOptions{Size: d.DeviceSize, Cluster: cluster, Node: node,
			Position: i, Count: d.Devices, Force: bad > 0, Progress: func(done, _ int64) {
				p.Show(uint64(int64(i)*d.DeviceSize+done), need, path)
			}})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxDemos bounds the names that are looked for among the node's volumes.
const maxDemos = 100_000

// chooseVolume deletes the volumes of earlier runs and names a new one.
func (d *demo) chooseVolume(ctx context.Context) error {
	c, err := peer.Dial(ctx, d.node.addr, peer.Options{Name: "redoubt demo"})
	if err != nil {
		return err
	}
	defer c.Close()
	there := map[redoubt.VolumeID]bool{}
	for after, more := (redoubt.SegmentID{}), true; more; {
		list, err := c.List(ctx, after, 0)
		if err != nil {
			return err
		}
		for _, s := range list.Segments {
			there[s.Volume], after = true, s.Segment
		}
		more = list.More
	}
	next := 1
	for i := 1; i <= maxDemos && len(there) > 0; i++ {
		l, err := newLayout(fmt.Sprintf("demo-%d", i), d.sum.Pages, demoPGSize)
		if err != nil {
			return err
		}
		if !there[l.volume] {
			continue
		}
		delete(there, l.volume)
		next = i + 1
		n, err := deleteVolume(ctx, c, &l)
		if err != nil {
			return err
		}
		d.say("deleted volume %s of an earlier run, %d segments", l.name, n)
	}
	d.volume = fmt.Sprintf("demo-%d", next)
	return nil
}

const (
	demoPGSize = 64 << 20
	demoWindow = 1 << 20 // small, so that the ack latency isn't that of a long queue
)

// replay replays the trace, kills the node half-way, and verifies.
func (d *demo) replay(ctx context.Context) (ReplayResult, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := RunReplay(ctx, ReplayOptions{Node: d.node.addr, Trace: d.Trace, Volume: d.volume, PGSize: demoPGSize, Window: demoWindow,
		Settle: true, Progress: NewProgress(d.Err, "replay"), Moved: func(s ReplayState) { d.killHalfWay(ctx, cancel, s) }})
	if d.killed == 0 {
		return res, errors.Join(err, errors.New("the node was never killed: the trace has too few commits"))
	}
	if rerr := <-d.restarted; rerr != nil || err != nil {
		return res, errors.Join(rerr, d.killErr, err)
	}
	d.say("SIGKILL when %d of %d records were durable (VDL %d); started again, serving after %.2f s (log recovery %.2f s);\n"+
		"   the replay went on from what was acknowledged and is complete: VDL %d", d.killed, d.sum.Records, d.killedAt, d.serving.Seconds(),
		d.recovering.Seconds(), res.AckedLSN)
	d.say("everything is coalesced into pages; read back %d pages at VDL in %.1f s (%s/s), SHA-256 compared", res.Pages, res.VerifyS, sizeText(res.VerifyBytes))
	return res, nil
}

// killHalfWay kills the node once half of the records are durable, and starts it
// again beside the replay, which waits until the kill is done.
func (d *demo) killHalfWay(ctx context.Context, cancel context.CancelCauseFunc, s ReplayState) {
	if d.killed > 0 || 2*s.Durable < s.Total {
		return
	}
	d.killed, d.killedAt = s.Durable, s.VDL
	d.before, d.killErr = scrape(ctx, d.node.http)
	d.node.kill()
	go func() {
		err := d.restart(ctx)
		if err != nil {
			cancel(err)
		}
		d.restarted <- err
	}()
}

func (d *demo) restart(ctx context.Context) (err error) {
	if d.serving, err = d.node.start(ctx); err != nil {
		return err
	}
	d.recovering, err = d.node.recovery(ctx)
	return err
}

// check runs the offline check, which fails on any damage.
func (d *demo) check(ctx context.Context) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, d.Binary, append([]string{"check"}, d.devices...)...)
	cmd.Stdout, cmd.Stderr = &out, d.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("redoubt check: %w\n%s", err, out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	d.say("redoubt check: %s", lines[len(lines)-1])
	return nil
}

// table prints the figures.
func (d *demo) table(r ReplayResult, after nodeSample) {
	payload := float64(r.Bytes)
	written := d.before[metricDeviceWrite] + after[metricDeviceWrite]
	log := d.before[metricLogWrite] + after[metricLogWrite]
	fmt.Fprintf(d.Out, "\n")
	for _, row := range [][2]string{
		{"records", fmt.Sprintf("%d in %.2f s with the outage: %.0f/s; %.0f commits/s", r.Sent, r.ElapsedS, r.RecordsPerS, r.CommitsPerS)},
		{"changed bytes", fmt.Sprintf("%s, %s/s", sizeText(payload), sizeText(r.BytesPerS))},
		{"commit to ack", fmt.Sprintf("p50 %.1f ms, p99 %.1f ms (the outage is in it)", r.CommitP50us/1e3, r.CommitP99us/1e3)},
		{"write amplification", fmt.Sprintf("%.2f device bytes for each changed byte (log %.2f, pages and tables %.2f)", written/payload, log/payload, (written-log)/payload)},
		{"recovery", fmt.Sprintf("%.2f s from start to serving, %.2f s of it the log", d.serving.Seconds(), d.recovering.Seconds())},
		{"trace's SHA-256", hex.EncodeToString(d.sum.SHA256[:])},
		{"volume's SHA-256", r.SHA256},
	} {
		fmt.Fprintf(d.Out, "   %-20s %s\n", row[0], row[1])
	}
	fmt.Fprintf(d.Out, "\nThe volume is byte-identical: %d pages, read back from the node, are what PostgreSQL wrote.\n", r.Pages)
}

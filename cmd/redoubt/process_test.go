package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// buildBinary builds the program as make does, once a test.
func buildBinary(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "redoubt")
	cmd := exec.Command("go", "build", "-tags", "giouring", "-ldflags=-checklinkname=0", "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// formatFiles formats n files in a new directory as the devices of one node.
func formatFiles(t *testing.T, bin string, n int, size string) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i := range n {
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("d%d", i)))
	}
	if out, err := exec.Command(bin, append([]string{"format", "-size", size, "-extent-size", "1MiB"}, paths...)...).CombinedOutput(); err != nil {
		t.Fatalf("format: %v\n%s", err, out)
	}
	return paths
}

// A process is a node in a process of its own.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	log  func() string
	done chan error
}

var readyLine = regexp.MustCompile(`msg=ready .*listen=(\S+)`)

// startProcess starts a node and returns once it serves, or what it said when it
// ended instead.
func startProcess(t *testing.T, bin string, devices []string, flags ...string) (*process, error) {
	t.Helper()
	args := append([]string{"node", "-devices", strings.Join(devices, ","), "-listen", "127.0.0.1:0", "-http", "-", "-memory", "96MiB"}, flags...)
	p := &process{t: t, cmd: exec.Command(bin, args...), done: make(chan error, 1)}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	var mu sync.Mutex
	var said strings.Builder
	p.log = func() string {
		mu.Lock()
		defer mu.Unlock()
		return said.String()
	}
	ready := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(pipe)
		for lines.Scan() {
			mu.Lock()
			said.WriteString(lines.Text() + "\n")
			mu.Unlock()
			if m := readyLine.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m[1]
			}
		}
		p.done <- p.cmd.Wait()
	}()
	select {
	case p.addr = <-ready:
		return p, nil
	case err := <-p.done:
		return nil, fmt.Errorf("%w\n%s", err, p.log())
	}
}

// stop ends the node with SIGTERM, cleanly.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := <-p.done; err != nil {
		p.t.Fatalf("clean shutdown: %v\n%s", err, p.log())
	}
}

// A checked is what "redoubt check -json" prints.
type checked struct {
	Devices []deviceReport `json:"devices"`
	Damage  int            `json:"damage"`
	Set     string         `json:"set"`
}

// runCheck runs "redoubt check -json" and returns its report and exit status.
func runCheck(t *testing.T, bin string, paths ...string) (checked, int) {
	t.Helper()
	cmd := exec.Command(bin, append([]string{"check", "-json"}, paths...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var c checked
	if err := json.Unmarshal(out, &c); err != nil {
		t.Fatalf("check printed no report: %v\n%s", err, out)
	}
	return c, cmd.ProcessState.ExitCode()
}

// wantClean fails if check finds anything.
func wantClean(t *testing.T, bin, when string, paths []string) {
	t.Helper()
	if c, code := runCheck(t, bin, paths...); code != 0 || c.Damage != 0 || c.Set != "" {
		t.Fatalf("check %s: exit status %d, %+v", when, code, c)
	}
}

// A stream is one segment's log, of which every byte follows from the LSN: so a
// client that was cut off needs nothing but the SCL to go on, and to check.
type stream struct {
	spec  wire.Create
	at    wire.Attached
	sent  redoubt.LSN
	acked redoubt.LSN // as any connection was told
	fill  int         // bytes of a record
}

const streamPages = 48

func newStream(pg redoubt.PGNo, lane uint8, fill int) *stream {
	return &stream{fill: fill, spec: wire.Create{Segment: redoubt.SegmentID(redoubt.NewID()), Volume: redoubt.VolumeID(redoubt.NewID()), PG: pg,
		Pages: redoubt.MinPGPages, Kind: redoubt.FullSegment, Lane: lane, VolumeEpoch: 1, MembershipEpoch: 1, GeometryEpoch: 1}}
}

// record returns where a record goes and what it writes there.
func (s *stream) record(lsn redoubt.LSN) (page uint32, off int, data []byte) {
	data = make([]byte, s.fill)
	for i := range data {
		data[i] = byte(uint64(lsn)*31 + uint64(i))
	}
	return uint32(lsn % streamPages), int(uint64(lsn) * 97 % uint64(redoubt.PageSize-s.fill)), data
}

// page is what a page must be as of a point.
func (s *stream) page(page uint32, point redoubt.LSN) []byte {
	b := make([]byte, redoubt.PageSize)
	for lsn := redoubt.LSN(page); lsn <= point; lsn += streamPages {
		if lsn > 0 {
			_, off, data := s.record(lsn)
			copy(b[off:], data)
		}
	}
	return b
}

// frame builds an APPEND frame with the next n records.
func (s *stream) frame(buf []byte, align, n int) []byte {
	var fb wire.AppendBuilder
	var bb redo.Builder
	fb.Reset(buf, align)
	bb.Reset(fb.Next(), s.spec.Volume, s.spec.PG, 1, s.sent)
	for range n {
		lsn := s.sent + 1
		page, off, data := s.record(lsn)
		if !bb.Write(lsn, page, lsn-min(lsn, streamPages), off, data, true) {
			break
		}
		s.sent = lsn
	}
	floor := s.acked - min(s.acked, 40)
	fb.Commit(s.at.Handle, len(bb.Finish()), s.acked, floor)
	return fb.Finish(uint64(s.sent))
}

// attach makes a connection ready for a stream, creating the segment if need be.
func (s *stream) attach(ctx context.Context, c *peer.Conn) error {
	if _, err := c.Create(ctx, &s.spec); err != nil {
		return err
	}
	at, err := c.Attach(ctx, &wire.Attach{Segment: s.spec.Segment, Volume: s.spec.Volume, VolumeEpoch: 1, MembershipEpoch: 1})
	s.at = at
	return err
}

// verify compares every page with what it must be at the segment's SCL.
func (s *stream) verify(t *testing.T, c *peer.Conn) {
	t.Helper()
	d, err := c.Describe(t.Context(), s.spec.Segment)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case d.SCL < s.acked:
		t.Fatalf("pg %d: SCL %d, but %d was acknowledged", s.spec.PG, d.SCL, s.acked)
	case d.SCL > s.sent || d.Unknown == wire.UnknownCorrupt:
		t.Fatalf("pg %d: SCL %d of %d that were sent, unknown %v", s.spec.PG, d.SCL, s.sent, d.Unknown)
	case d.SCL == 0:
		return
	}
	r := &peer.ReadRequest{Handle: s.at.Handle, Point: d.SCL, Buf: make([]byte, streamPages*redoubt.PageSize), Volume: s.spec.Volume, PG: s.spec.PG, PGPages: s.spec.Pages}
	for i := range uint32(streamPages) {
		r.Pages = append(r.Pages, i)
	}
	if err := c.ReadPages(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for i := range r.Pages {
		got := r.Buf[i*redoubt.PageSize : (i+1)*redoubt.PageSize]
		if r.Descs[i].Code != wire.CodeOK || string(got) != string(s.page(uint32(i), d.SCL)) {
			t.Fatalf("pg %d page %d as of %d: code %v, or other bytes than were written", s.spec.PG, i, d.SCL, r.Descs[i].Code)
		}
	}
	// The client goes on from what is there.
	s.acked, s.sent = d.SCL, d.SCL
}

package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
)

// run is "redoubt bench ARGS".
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = Main(t.Context(), args, &out, &err)
	return status, out.String(), err.String()
}

func TestEveryLoadTeachesItself(t *testing.T) {
	status, out, _ := run(t, "help")
	if status != 0 {
		t.Fatal(status)
	}
	for _, c := range commands() {
		if !strings.Contains(out, "\n  "+c.name+" ") {
			t.Errorf("help doesn't speak of %s:\n%s", c.name, out)
		}
		status, _, help := run(t, c.name, "--help")
		if status != 0 || !strings.Contains(help, "redoubt bench "+c.name) || !strings.Contains(help, "-json") {
			t.Errorf("%s --help: status %d\n%s", c.name, status, help)
		}
		for _, args := range [][]string{{c.name, "-no-such-flag"}, {c.name, "stray"}} {
			if status, _, _ := run(t, args...); status != 1 {
				t.Errorf("%v: status %d", args, status)
			}
		}
	}
	if status, _, _ := run(t); status != 2 {
		t.Errorf("no load: status %d", status)
	}
	if status, _, text := run(t, "nothing"); status != 2 || !strings.Contains(text, `no "nothing"`) {
		t.Errorf("an unknown load: status %d, %s", status, text)
	}
}

// TestCommands runs each load from its command line to its JSON.
func TestCommands(t *testing.T) {
	r := newRig(t, 1)
	trace := filepath.Join(t.TempDir(), "small.trace.gz")
	if err := os.WriteFile(trace, compress(t, syntheticTrace(50, 10, 1).end()), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		fields []string
	}{
		{"append -node NODE -node-http HTTP -segments 2 -writers 4 -pg-size 16MiB -duration 300ms", []string{"records_per_s", "device_bytes_per_record", "p999_us"}},
		{"read -node NODE -node-http HTTP -segments 2 -pages 20 -depth 4 -pg-size 16MiB -duration 50ms", []string{"ops_per_s", "pages_per_s"}},
		{"replay -node NODE -trace TRACE -pg-size 16MiB", []string{"match", "sha256", "acked_lsn"}},
		{"replay -node NODE -trace TRACE -pg-size 16MiB -verify-only", []string{"match", "sha256", "acked_lsn"}},
		{"device -devices FILE -op append -duration 20ms", []string{"ops_per_s", "cpu_us_per_op"}},
		{"device -devices FILE -op read -duration 20ms", []string{"ops_per_s", "cpu_us_per_op"}},
	} {
		line := strings.NewReplacer("NODE", r.addr, "HTTP", r.http, "TRACE", trace, "FILE", file).Replace(c.args)
		status, out, text := run(t, append(strings.Fields(line), "-json")...)
		var res map[string]any
		if err := json.Unmarshal([]byte(out), &res); status != 0 || err != nil {
			t.Fatalf("%s: status %d, %v\n%s%s", line, status, err, out, text)
		}
		for _, f := range c.fields {
			if _, ok := res[f]; !ok {
				t.Errorf("%s: no field %s in %s", line, f, out)
			}
		}
		if res["match"] == false {
			t.Errorf("%s: %s", line, out)
		}
		status, plain, text := run(t, strings.Fields(line)...)
		if status != 0 || len(strings.Split(plain, "\n")) < 3 || strings.Contains(plain, "{") {
			t.Errorf("%s: status %d\n%s%s", line, status, plain, text)
		}
	}
	if status, _, _ := run(t, "replay", "-node", r.addr); status != 1 {
		t.Error("a replay without a trace")
	}
}

// TestAppendSparesDevices refuses to write over what a node lives on.
func TestAppendSparesDevices(t *testing.T) {
	devices := newDevices(t, 1)
	before, err := os.ReadFile(devices[0])
	if err != nil {
		t.Fatal(err)
	}
	status, _, text := run(t, "device", "-devices", devices[0], "-op", "append", "-duration", "10ms")
	after, err := os.ReadFile(devices[0])
	if err != nil {
		t.Fatal(err)
	}
	if status != 1 || !strings.Contains(text, "-force") || !bytes.Equal(before, after) {
		t.Fatalf("status %d, %s", status, text)
	}
	if status, _, text := run(t, "device", "-devices", devices[0], "-op", "read", "-duration", "10ms"); status != 0 {
		t.Fatalf("reading is harmless: %s", text)
	}
	if status, _, text := run(t, "device", "-devices", devices[0], "-op", "append", "-duration", "10ms", "-force"); status != 0 || !strings.Contains(text, "overwrites") {
		t.Fatalf("-force: %d, %s", status, text)
	}
	if status, _, _ := run(t, "device"); status != 1 {
		t.Fatal("no devices")
	}
	if status, _, _ := run(t, "device", "-devices", "/nowhere/at/all", "-op", "read"); status != 1 {
		t.Fatal("a device that isn't there")
	}
}

func TestByteSizes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "4096": 4096, "1KiB": 1 << 10, "64MiB": 64 << 20, "3GiB": 3 << 30, "2TiB": 2 << 40} {
		var s byteSize
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		var again byteSize
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%s prints as %s", text, s.String())
		}
	}
	for _, text := range []string{"", "-1", "x", "1.5GiB", "1GB", "GiB", "99999999999TiB"} {
		var s byteSize
		if s.Set(text) == nil {
			t.Errorf("%q was taken for %d", text, s)
		}
	}
}

func TestParseMetrics(t *testing.T) {
	s, err := parseMetrics(strings.NewReader("# HELP a text\n# TYPE a counter\na{lane=\"0\"} 1.5\na{lane=\"1 } 2\"} 2e3\nb 7 1700000000\n\n"))
	if err != nil || s["a"] != 2001.5 || s["b"] != 7 || len(s) != 2 {
		t.Fatalf("%v, %v", s, err)
	}
	for _, bad := range []string{"a x\n", "a}{ 1\n", "a\n"} {
		if _, err := parseMetrics(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, c := range []struct{ addr, given, want string }{
		{"127.0.0.1:7420", "", "127.0.0.1:7421"}, {"[::1]:9", "", "[::1]:10"}, {"h:1", "x:2", "x:2"},
	} {
		if got, err := httpOf(c.addr, c.given); err != nil || got != c.want {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
	for _, bad := range []string{"", "host", "host:port"} {
		if _, err := httpOf(bad, ""); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestMetersDoWithoutMetrics measures this process when the node's can't be had,
// and fails when they were asked for.
func TestMetersDoWithoutMetrics(t *testing.T) {
	for _, given := range []string{"", "-"} {
		m, err := startMeter(t.Context(), "127.0.0.1:1", given)
		if err != nil {
			t.Fatal(err)
		}
		c, err := m.stop(t.Context())
		if err != nil || c.cpuOf != cpuOfThis || c.deviceBytes >= 0 {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	if _, err := startMeter(t.Context(), "127.0.0.1:1", "127.0.0.1:1"); err == nil {
		t.Fatal("no error for metrics that are not there")
	}
}

func TestProgressOnALogIsLines(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, "work")
	p.Show(1, 2, "too early")
	p.next = time.Time{}
	p.Show(1, 2, "half")
	p.Show(2, 2, "again too early")
	p.next = time.Time{}
	p.Show(5, 0, "of nobody knows what")
	p.Done()
	p.Say("a %s", "word")
	if got, want := out.String(), "work:  50 %  half\nwork: of nobody knows what\nwork: a word\n"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	var none *Progress
	none.Show(1, 1, "")
	none.Say("")
	none.Done()
	if NewProgress(nil, "") != nil {
		t.Fatal("a progress for nobody")
	}
}

// TestProgressOnATerminalIsOneLine redraws a bar and removes it.
func TestProgressOnATerminalIsOneLine(t *testing.T) {
	var out bytes.Buffer
	p := &Progress{w: &out, tty: true, label: "work"}
	p.Show(1, 2, "half")
	p.Say("a word")
	p.Done()
	want := "\r\033[Kwork [###############...............]  50 %  half\r\033[Kwork: a word\n"
	if got := out.String(); got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

// TestAChildThatCantServe says why, in the words of its log.
func TestAChildThatCantServe(t *testing.T) {
	n, err := newChildNode(testBinary(t), []string{"/nowhere/at/all"}, rigMemory, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.start(t.Context()); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Fatalf("%v", err)
	}
	n.binary = "/nowhere/at/all"
	if _, err := n.start(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	n.end()
}

func TestPermanentErrors(t *testing.T) {
	for _, err := range []error{redoubt.ErrFenced, redoubt.ErrCorrupt, redoubt.ErrInvalid} {
		if !permanent(fmt.Errorf("wrapped: %w", err)) {
			t.Errorf("%v may go away", err)
		}
	}
	for _, err := range []error{redoubt.ErrClosed, redoubt.ErrFull, redoubt.ErrBusy, errors.New("connection refused")} {
		if permanent(err) {
			t.Errorf("%v can't go away", err)
		}
	}
}

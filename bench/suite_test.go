package bench

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
)

// TestSuite takes the measures that need neither fio nor other logs, in small,
// with a node of its own, and reads what it leaves.
func TestSuite(t *testing.T) {
	dir, out := filepath.Join(t.TempDir(), "dir"), filepath.Join(t.TempDir(), "out")
	var table, progress bytes.Buffer
	o := SuiteOptions{Dir: dir, Out: out, Binary: testBinary(t), Peers: "-", Count: 2, Duration: 50 * time.Millisecond, FileSize: 64 << 20,
		DeviceSize: 256 << 20, Memory: rigMemory, IOEngine: "sync", Only: []string{"T5", "T7", "T14", "T16"}, Table: &table, Progress: &progress}
	rows, err := RunSuite(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	var ids []string
	for _, r := range rows {
		ids = append(ids, r.ID)
		if r.Verdict == "" || r.Figure <= 0 || r.Ours == nil || len(r.Ours.Rounds) == 0 || r.Ours.Median <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if got := strings.Join(ids, " "); got != "T5 T5 T7 T7 T14 T16" {
		t.Fatalf("measures %s", got)
	}
	var report SuiteReport
	b, err := os.ReadFile(filepath.Join(out, "results.json"))
	if err == nil {
		err = json.Unmarshal(b, &report)
	}
	if err != nil || len(report.Rows) != len(rows) || report.Machine.CPUs == 0 || report.Settings.Rounds != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	picture, err := os.ReadFile(filepath.Join(out, "results.html"))
	if err != nil || bytes.Count(picture, []byte("<rect class=")) != len(rows) || bytes.Contains(picture, []byte("ZgotmplZ")) {
		t.Fatalf("%v\n%s", err, picture)
	}
	for _, id := range ids {
		if !strings.Contains(table.String(), "\n"+id+" ") {
			t.Errorf("no row %s in\n%s", id, &table)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "node.log" {
		t.Errorf("%v is left, %v", left, err)
	}
}

// TestAMeasureThatFailsIsARow goes on with the others, and is an error in the
// end.
func TestAMeasureThatFailsIsARow(t *testing.T) {
	t.Setenv("PATH", "")
	o := SuiteOptions{Dir: t.TempDir(), Out: t.TempDir(), Binary: testBinary(t), Peers: "-", Count: 1, Duration: 20 * time.Millisecond, FileSize: 64 << 20,
		DeviceSize: 64 << 20, Memory: rigMemory, IOEngine: "sync", Only: []string{"T1", "T16"}}
	rows, err := RunSuite(t.Context(), o)
	if !errors.Is(err, errNoFio) || len(rows) != 2 || rows[0].Verdict != verdictFailed || rows[1].ID != "T16" || rows[1].Verdict == verdictFailed {
		t.Fatalf("%v, %+v", err, rows)
	}
}

func TestSuiteOptionsOutOfRange(t *testing.T) {
	for _, o := range []SuiteOptions{{Only: []string{"T99"}}, {Count: -1}, {Duration: -1}, {FileSize: 1}, {DeviceSize: 1}} {
		if _, err := RunSuite(t.Context(), o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		row    Row
		figure float64
		want   string
	}{
		{Row{Must: 0.6, Aim: 0.9}, 0.9, verdictAim},
		{Row{Must: 0.6, Aim: 0.9}, 0.6, verdictMust},
		{Row{Must: 0.6, Aim: 0.9}, 0.59, verdictMissed},
		{Row{Must: 8, Aim: 5, Lower: true}, 5, verdictAim},
		{Row{Must: 8, Aim: 5, Lower: true}, 7, verdictMust},
		{Row{Must: 8, Aim: 5, Lower: true}, 8.1, verdictMissed},
	} {
		r := c.row
		if r.judge(c.figure); r.Verdict != c.want {
			t.Errorf("%v against %v and %v: %s", c.figure, c.row.Must, c.row.Aim, r.Verdict)
		}
	}
	r := Row{Must: 1, Aim: 2}
	r.ratio(Side{Rounds: []float64{10, 30, 100}}, Side{Rounds: []float64{10, 10, 1000}})
	if r.Figure != 1 || r.Ours.Median != 30 || r.Against.Median != 10 {
		t.Errorf("%+v: want the median of 1, 3 and 0.1", r)
	}
	for want, v := range map[float64][]float64{0: nil, 2: {2}, 2.5: {1, 4}, 3: {9, 3, 1}} {
		if got := median(v); got != want {
			t.Errorf("median of %v is %v", v, got)
		}
	}
}

func TestParseFio(t *testing.T) {
	const report = `fio: a note
{"jobs": [{"error": 0, "usr_cpu": 10, "sys_cpu": 30, "job_runtime": 2000,
 "read": {"total_ios": 0, "iops": 0, "bw_bytes": 0},
 "write": {"total_ios": 40000, "iops": 20000.5, "bw_bytes": 81920000, "clat_ns": {"percentile": {"50.000000": 105000, "99.000000": 250000}}}}]}`
	r, err := parseFio([]byte(report), false)
	want := fioResult{opsPerS: 20000.5, bytesPerS: 81920000, p50us: 105, p99us: 250, cpuUsPerOp: 20}
	if err != nil || r != want {
		t.Fatalf("%+v, %v; want %+v", r, err, want)
	}
	for name, bad := range map[string]string{
		"nothing":          "",
		"no JSON":          "fio: cannot open file",
		"no jobs":          `{"jobs": []}`,
		"a job that fails": strings.Replace(report, `"error": 0`, `"error": 5`, 1),
	} {
		if _, err := parseFio([]byte(bad), false); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := parseFio([]byte(report), true); err == nil {
		t.Error("reads that did nothing")
	}
}

// TestTheFloorIsALog holds that what is compared with does what a log must: each
// block that it wrote is whole, and all records are in some block.
func TestTheFloorIsALog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const size = 64 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	const writers, record = 16, 100
	res, err := RunFloor(t.Context(), path, writers, record, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if res.RecordsPerS <= 0 || res.P50us <= 0 || res.P99us < res.P50us || res.DeviceBytesPerRecord < record {
		t.Fatalf("%+v", res)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	records, pos := 0, 0
	for pos+floorHead <= size && (pos == 0 || le.Uint64(b[pos:]) == uint64(pos)) {
		n := int(le.Uint32(b[pos+8:]))
		if le.Uint32(b[pos+12:]) != crc32.Checksum(b[pos+floorHead:pos+n], floorTable) {
			t.Fatalf("the block at %d is not whole", pos)
		}
		for at := pos + floorHead; at < pos+n; at += 4 + record {
			if le.Uint32(b[at:]) != record {
				t.Fatalf("a record of %d bytes at %d", le.Uint32(b[at:]), at)
			}
			records++
		}
		pos += (n + floorAlign - 1) / floorAlign * floorAlign
	}
	if want := res.DeviceBytesPerRecord * float64(records); int(want+0.5) != pos {
		t.Fatalf("%d records in %d bytes of log; %v bytes a record were counted", records, pos, res.DeviceBytesPerRecord)
	}
}

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// A fioJob is one run of fio, the limit that others are set against: io_uring,
// direct, with registered file and buffers as our own engine has them.
type fioJob struct {
	read      bool // at random; else in sequence, DSYNC on each write
	file      string
	size      int64
	blockSize int
	depth     int
	duration  time.Duration
}

// A fioResult is what fio achieved.
type fioResult struct {
	opsPerS, bytesPerS float64
	p50us, p99us       float64
	cpuUsPerOp         float64
}

// errNoFio says what to do without fio.
var errNoFio = errors.New("fio is not installed, and the device's limit is not known without it: apt-get install fio")

func (j fioJob) run(ctx context.Context) (fioResult, error) {
	path, err := exec.LookPath("fio")
	if err != nil {
		return fioResult{}, errNoFio
	}
	args := []string{"--name=redoubt", "--filename=" + j.file, "--size=" + strconv.FormatInt(j.size, 10), "--ioengine=io_uring", "--direct=1",
		"--registerfiles=1", "--fixedbufs=1", "--fallocate=none", "--bs=" + strconv.Itoa(j.blockSize), "--iodepth=" + strconv.Itoa(j.depth),
		"--time_based=1", "--runtime=" + strconv.FormatInt(j.duration.Milliseconds(), 10) + "ms", "--percentile_list=50:99", "--output-format=json"}
	if j.read {
		args = append(args, "--rw=randread", "--norandommap=1")
	} else {
		args = append(args, "--rw=write", "--sync=dsync")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return fioResult{}, fmt.Errorf("bench: fio: %w: %s%s", err, text.String(), out.String())
	}
	return parseFio(out.Bytes(), j.read)
}

// fioReport is the part of fio's JSON that is used.
type fioReport struct {
	Jobs []struct {
		Error     int     `json:"error"`
		UserCPU   float64 `json:"usr_cpu"` // percent
		SystemCPU float64 `json:"sys_cpu"`
		RuntimeMs float64 `json:"job_runtime"`
		Read      fioSide `json:"read"`
		Write     fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	IOs     float64 `json:"total_ios"`
	OpsPerS float64 `json:"iops"`
	Bytes   float64 `json:"bw_bytes"`
	Latency struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

func parseFio(b []byte, read bool) (fioResult, error) {
	// Some versions print notes before the JSON.
	if at := bytes.IndexByte(b, '{'); at > 0 {
		b = b[at:]
	}
	var r fioReport
	if err := json.Unmarshal(b, &r); err != nil {
		return fioResult{}, fmt.Errorf("bench: fio's report: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return fioResult{}, fmt.Errorf("bench: fio failed: %s", b)
	}
	j := r.Jobs[0]
	s := j.Write
	if read {
		s = j.Read
	}
	if s.OpsPerS == 0 || s.IOs == 0 {
		return fioResult{}, fmt.Errorf("bench: fio did nothing: %s", b)
	}
	return fioResult{opsPerS: s.OpsPerS, bytesPerS: s.Bytes, p50us: s.Latency.Percentile["50.000000"] / 1e3, p99us: s.Latency.Percentile["99.000000"] / 1e3,
		cpuUsPerOp: (j.UserCPU + j.SystemCPU) / 100 * j.RuntimeMs * 1e3 / s.IOs}, nil
}

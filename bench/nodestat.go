package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Whose CPU a result speaks of, in the field cpu_of.
const (
	cpuOfNode = "node"
	cpuOfThis = "this process"
)

// A nodeSample is what a node's metrics say at one moment; each figure is the
// sum over its labels.
type nodeSample map[string]float64

// The metrics that results are made of.
const (
	metricCPU         = "process_cpu_seconds_total"
	metricRSS         = "process_resident_memory_bytes"
	metricDeviceWrite = "redoubt_device_write_bytes_total"
	metricLogWrite    = "redoubt_log_write_bytes_total"
)

// httpOf returns where the metrics of the node at addr are: at given, or, if that
// is empty, at the port after the node's. "-" is nowhere.
func httpOf(addr, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("bench: node address %q: %w", addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", fmt.Errorf("bench: node address %q: port: %w", addr, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(n+1)), nil
}

// scrape asks a node for its metrics.
func scrape(ctx context.Context, addr string) (nodeSample, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("bench: metrics: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("bench: metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("bench: metrics of %s: %s", addr, resp.Status)
	}
	return parseMetrics(resp.Body)
}

// parseMetrics reads Prometheus's text format as far as counters and gauges go:
// name{labels} value.
func parseMetrics(r io.Reader) (nodeSample, error) {
	s := nodeSample{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if at := strings.IndexByte(line, '{'); at >= 0 {
			end := strings.LastIndexByte(line, '}')
			if end < at {
				return nil, fmt.Errorf("bench: metrics: line %q", line)
			}
			name, rest = line[:at], strings.TrimSpace(line[end+1:])
		}
		value, _, _ := strings.Cut(rest, " ") // a time may follow
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("bench: metrics: line %q: %w", line, err)
		}
		s[name] += v
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("bench: metrics: %w", err)
	}
	return s, nil
}

// A meter measures what a load costs: the node's CPU and writes if its metrics
// can be had, else this process's CPU.
type meter struct {
	http   string // "": no metrics
	before nodeSample
	cpu    time.Duration
}

// startMeter begins to measure. given is what the user said of the metrics'
// address; if that is nothing, doing without them is no error.
func startMeter(ctx context.Context, node, given string) (*meter, error) {
	m := &meter{}
	if given != "-" {
		addr, err := httpOf(node, given)
		if err != nil {
			return nil, err
		}
		switch m.before, err = scrape(ctx, addr); {
		case err == nil:
			m.http = addr
		case given != "":
			return nil, err
		}
	}
	m.cpu = cpuTime()
	return m, nil
}

// A cost is what a meter measured. Bytes are negative where nobody knows.
type cost struct {
	cpu         time.Duration
	cpuOf       string
	deviceBytes float64
	logBytes    float64
}

// stop returns what was used since the start.
func (m *meter) stop(ctx context.Context) (cost, error) {
	c := cost{cpu: cpuTime() - m.cpu, cpuOf: cpuOfThis, deviceBytes: -1, logBytes: -1}
	if m.http == "" {
		return c, nil
	}
	after, err := scrape(ctx, m.http)
	if err != nil {
		return c, err
	}
	c.cpu = time.Duration((after[metricCPU] - m.before[metricCPU]) * float64(time.Second))
	c.cpuOf = cpuOfNode
	c.deviceBytes = after[metricDeviceWrite] - m.before[metricDeviceWrite]
	c.logBytes = after[metricLogWrite] - m.before[metricLogWrite]
	return c, nil
}

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// A peerResult is what the comparison says of one other log.
type peerResult struct {
	Name        string  `json:"name"`
	RecordsPerS float64 `json:"records_per_s"`
	Error       string  `json:"error"`
}

// findPeers finds, or builds, the comparison with other logs. It is a module of
// its own that must be downloaded, so it may well not be there.
func (s *suite) findPeers(ctx context.Context) {
	st, err := os.Stat(s.Peers)
	switch {
	case s.Peers == "-" || s.Peers == "":
		s.peersWhy = "bench/peers was not looked for"
	case err != nil:
		s.peersWhy = err.Error()
	case !st.IsDir():
		s.peers = s.Peers
	default:
		s.buildPeers(ctx)
	}
	if s.peers == "" {
		s.progress.Say("no other logs to compare with: %s", s.peersWhy)
	}
}

func (s *suite) buildPeers(ctx context.Context) {
	out, err := filepath.Abs(filepath.Join(s.Dir, "peers"))
	if err != nil {
		s.peersWhy = err.Error()
		return
	}
	s.progress.Say("building %s (it may have to be downloaded)", s.Peers)
	cmd := exec.CommandContext(ctx, "go", "build", "-C", s.Peers, "-o", out, ".")
	text, err := cmd.CombinedOutput()
	if err != nil {
		s.peersWhy = fmt.Sprintf("go build -C %s: %v: %s", s.Peers, err, lastOf(string(text)))
		return
	}
	s.peers = out
}

// peersData is where the other logs write.
func (s *suite) peersData() string { return filepath.Join(s.Dir, "peers.data") }

// lastOf returns the last line of a text.
func lastOf(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// runPeers returns the best of the other logs.
func (s *suite) runPeers(ctx context.Context, writers, size int) (best peerResult, err error) {
	cmd := exec.CommandContext(ctx, s.peers, "-dir", s.peersData(), "-writers", strconv.Itoa(writers),
		"-record-size", strconv.Itoa(size), "-duration", s.Duration.String())
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return best, fmt.Errorf("%s: %w: %s", s.peers, err, text.String())
	}
	var all []peerResult
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return best, fmt.Errorf("%s: %w", s.peers, err)
	}
	for _, p := range all {
		if p.Error != "" {
			return best, fmt.Errorf("%s: %s: %s", s.peers, p.Name, p.Error)
		}
		if p.RecordsPerS > best.RecordsPerS {
			best = p
		}
	}
	if best.RecordsPerS == 0 {
		return best, errors.New(s.peers + " measured nothing")
	}
	return best, nil
}

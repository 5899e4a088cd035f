package powercut

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The files of a failure's directory: the drives as the failing boot found them,
// what was known of the streams, and what the guest's console said.
const (
	oracleFile  = "oracle.json"
	consoleFile = "console.txt"
)

func driveFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("drive%d.img", i)) }

// Save writes the failure to a directory below parent and gives its path.
func (f *Failure) Save(parent string) (string, error) {
	dir := filepath.Join(parent, fmt.Sprintf("failed-%s-%d", f.Config.Workload, f.Seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("powercut: %w", err)
	}
	oracle, err := json.MarshalIndent(f.Config, "", "  ")
	if err != nil {
		return "", fmt.Errorf("powercut: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, oracleFile), append(oracle, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("powercut: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, consoleFile), []byte(f.Error()+"\n\n"+f.Console), 0o644); err != nil {
		return "", fmt.Errorf("powercut: %w", err)
	}
	for i, image := range f.Images {
		if err := writeSparse(driveFile(dir, i), image); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// LoadFailure reads what Save has written.
func LoadFailure(dir string) (*Failure, error) {
	text, err := os.ReadFile(filepath.Join(dir, oracleFile))
	if err != nil {
		return nil, fmt.Errorf("powercut: %w", err)
	}
	f := &Failure{}
	if err := json.Unmarshal(text, &f.Config); err != nil {
		return nil, fmt.Errorf("powercut: %s: %w", filepath.Join(dir, oracleFile), err)
	}
	f.Seed = f.Config.Seed
	for i := range f.Config.Devices {
		image, err := os.ReadFile(driveFile(dir, i))
		if err != nil {
			return nil, fmt.Errorf("powercut: %w", err)
		}
		f.Images = append(f.Images, image)
	}
	return f, nil
}

// Replay prepares the boot that failed: [Life.Verify] on it reaches the verdict.
func (f *Failure) Replay(o LifeOptions) *Life {
	o.Workload, o.Args, o.Disks, o.DiskSize = f.Config.Workload, f.Config.Args, len(f.Images), int64(len(f.Images[0]))
	return &Life{Seed: f.Seed, opts: o.withDefaults(), images: f.Images, streams: f.Config.Streams, life: f.Config.Life,
		seen: make(map[string]uint64)}
}

// writeSparse writes image and leaves holes where it is zero.
func writeSparse(path string, image []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("powercut: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(image))); err != nil {
		return fmt.Errorf("powercut: %w", err)
	}
	const step = 64 << 10
	zeros := make([]byte, step)
	for at := 0; at < len(image); at += step {
		piece := image[at:min(at+step, len(image))]
		if bytes.Equal(piece, zeros[:len(piece)]) {
			continue
		}
		if _, err := f.WriteAt(piece, int64(at)); err != nil {
			return fmt.Errorf("powercut: %w", err)
		}
	}
	return f.Close()
}

// indent sets a console's text off from ours.
func indent(s string) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(s, "\r", ""), "\n"), "\n")
	if len(lines) > 40 {
		lines = lines[len(lines)-40:]
	}
	return "    | " + strings.Join(lines, "\n    | ")
}

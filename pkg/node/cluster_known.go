package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/control"
)

// knownFile, in the data directory, holds whom this node was last told of, so that a
// node that starts while no scheduler answers finds the schedulers and seeds that an
// earlier process had learned. It holds addresses and peer IDs, no secret, and nothing
// in it is trusted: whoever answers must show the certificate of that ID.
const knownFile = "cluster.json"

// Bounds on what is kept, and read back: the file may have been written by anybody.
const (
	mostKnown      = 256
	mostKnownBytes = 256 << 10
)

type knownMember struct {
	Node    string `json:"node"`
	Address string `json:"address"`
}

type knownMembers struct {
	Saved      time.Time     `json:"saved"`
	Schedulers []knownMember `json:"schedulers"`
	Seeds      []knownMember `json:"seeds"`
}

// loadKnown reads whom an earlier process knew. A file that is not there is no error; of
// one that is broken nothing is used.
func loadKnown(dir string) (control.Known, error) {
	file, err := os.Open(filepath.Join(dir, knownFile))
	if errors.Is(err, fs.ErrNotExist) {
		return control.Known{}, nil
	}
	if err != nil {
		return control.Known{}, err
	}
	defer func() { _ = file.Close() }() // only read
	var kept knownMembers
	if err := json.NewDecoder(io.LimitReader(file, mostKnownBytes)).Decode(&kept); err != nil {
		return control.Known{}, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return control.Known{Schedulers: fromKept(kept.Schedulers), Seeds: fromKept(kept.Seeds)}, nil
}

func fromKept(kept []knownMember) []control.Holder {
	var out []control.Holder
	for _, m := range kept[:min(len(kept), mostKnown)] {
		if _, _, err := net.SplitHostPort(m.Address); err != nil || m.Node == "" {
			continue
		}
		out = append(out, control.Holder{ID: m.Node, Address: m.Address})
	}
	return out
}

func toKept(known []control.Holder) []knownMember {
	out := []knownMember{}
	for _, h := range known[:min(len(known), mostKnown)] {
		out = append(out, knownMember{Node: h.ID, Address: h.Address})
	}
	return out
}

// saveKnown writes it whole or not at all.
func saveKnown(dir string, known control.Known) (err error) {
	content, err := json.MarshalIndent(knownMembers{
		Saved: time.Now().UTC().Truncate(time.Second), Schedulers: toKept(known.Schedulers), Seeds: toKept(known.Seeds),
	}, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, knownFile+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name()) // the error that is returned says more
		}
	}()
	_, err = temp.Write(append(content, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), filepath.Join(dir, knownFile))
}

// keeper writes what is learned beside those who learn it, who must not wait for a disk.
type keeper struct {
	dir  string
	log  *zap.Logger
	news chan control.Known // the newest only
}

func newKeeper(dir string, log *zap.Logger) *keeper {
	return &keeper{dir: dir, log: log, news: make(chan control.Known, 1)}
}

// learned takes what is to be kept. One goroutine calls it.
func (k *keeper) learned(known control.Known) {
	select {
	case <-k.news:
	default:
	}
	k.news <- known
}

// run writes until ctx ends, what came last included.
func (k *keeper) run(ctx context.Context) error {
	for {
		select {
		case known := <-k.news:
			k.save(known)
		case <-ctx.Done():
			select {
			case known := <-k.news:
				k.save(known)
			default:
			}
			return ctx.Err()
		}
	}
}

func (k *keeper) save(known control.Known) {
	if err := saveKnown(k.dir, known); err != nil {
		k.log.Warn("cannot keep whom this node knows; a restart while no scheduler answers would read from the registry alone", zap.Error(err))
	}
}

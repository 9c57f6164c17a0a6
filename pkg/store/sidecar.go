package store

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// sidecar is what is kept beside a blob's data. On disk, little endian:
//
//	"DMFS" | version u16 | flags u16 | size u64 | algorithm u8 | places u8 | 2 zero bytes
//	hash, as long as the algorithm's
//	places where an origin has served the blob, 16 bytes each
//	CRC-32C of all before it, u32                                  -- the header ends here
//	held pieces, a bit each, lowest first                          -- not when sealed
//	known links, a bit each, lowest first                          -- not when sealed
//	the known links but link 0, in order                           -- sealed: links 1 to n-1
//	CRC-32C of all before it, u32
//
// It claims, it proves nothing: a reader checks every piece that it names.
type sidecar struct {
	header
	held  *blob.Bitmap // nil when sealed: all
	chain *blob.Chain
}

// header is the part of a sidecar that is read when a store opens.
type header struct {
	digest blob.Digest
	layout blob.Layout
	sealed bool
	pinned bool
	// shared: the data is a file of a runtime, not to be written to; adopted: it
	// came from there alone, and leaves with it.
	shared, adopted bool
	places          []blob.Place
}

const (
	sidecarMagic   = "DMFS"
	sidecarVersion = 1
	fixedLength    = 20
	crcLength      = 4
	placeLength    = 16
	maxHeader      = fixedLength + 64 + blob.MaxPlaces*placeLength + crcLength

	flagSealed  = 1 << 0
	flagPinned  = 1 << 1
	flagShared  = 1 << 2
	flagAdopted = 1 << 3
)

var (
	errCorrupt = errors.New("sidecar is corrupt")
	errVersion = errors.New("sidecar has a version that this release does not know")
)

func algorithmCode(d blob.Digest) byte {
	if d.Algorithm() == "sha512" {
		return 2
	}
	return 1
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// encode renders the sidecar.
func (m *sidecar) encode() []byte {
	n := m.layout.Pieces()
	p := make([]byte, 0, maxHeader+2*((n+7)/8)+n*m.digest.LinkSize()+crcLength)
	p = m.header.append(p)
	if !m.sealed {
		p = appendBits(p, n, m.held.Has)
		p = appendBits(p, n, func(i int) bool { return m.chain.Link(i) != nil })
	}
	for i := 1; i < n; i++ {
		p = append(p, m.chain.Link(i)...)
	}
	return binary.LittleEndian.AppendUint32(p, checksum(p))
}

func (h *header) append(p []byte) []byte {
	var flags uint16
	if h.sealed {
		flags |= flagSealed
	}
	if h.pinned {
		flags |= flagPinned
	}
	if h.shared {
		flags |= flagShared
	}
	if h.adopted {
		flags |= flagAdopted
	}
	p = append(p, sidecarMagic...)
	p = binary.LittleEndian.AppendUint16(p, sidecarVersion)
	p = binary.LittleEndian.AppendUint16(p, flags)
	p = binary.LittleEndian.AppendUint64(p, uint64(h.layout.Size()))
	p = append(p, algorithmCode(h.digest), byte(len(h.places)), 0, 0)
	p, _ = hex.AppendDecode(p, []byte(h.digest.Hex()))
	for _, at := range h.places {
		p = append(p, at[:]...)
	}
	return binary.LittleEndian.AppendUint32(p, checksum(p))
}

// decodeHeader reads the header of d's sidecar from the start of p and returns
// what follows it. The error wraps errVersion or errCorrupt.
func decodeHeader(d blob.Digest, p []byte) (header, []byte, error) {
	h := header{digest: d}
	if len(p) < fixedLength || string(p[:4]) != sidecarMagic {
		return h, nil, fmt.Errorf("%w: no header", errCorrupt)
	}
	if v := binary.LittleEndian.Uint16(p[4:]); v != sidecarVersion {
		return h, nil, fmt.Errorf("%w: %d", errVersion, v)
	}
	hashed := fixedLength + len(d.Hex())/2
	places := int(p[fixedLength-3])
	end := hashed + places*placeLength
	if len(p) < end+crcLength || binary.LittleEndian.Uint32(p[end:]) != checksum(p[:end]) {
		return h, nil, fmt.Errorf("%w: header checksum", errCorrupt)
	}
	want, err := hex.AppendDecode([]byte{algorithmCode(d), byte(places), 0, 0}, []byte(d.Hex()))
	if err != nil || string(want) != string(p[fixedLength-4:hashed]) {
		return h, nil, fmt.Errorf("%w: it belongs to another blob", errCorrupt)
	}
	if places > blob.MaxPlaces {
		return h, nil, fmt.Errorf("%w: %d places", errCorrupt, places)
	}
	for at := hashed; at < end; at += placeLength {
		h.places = append(h.places, blob.Place(p[at:at+placeLength]))
	}
	flags := binary.LittleEndian.Uint16(p[6:])
	if flags&^(flagSealed|flagPinned|flagShared|flagAdopted) != 0 {
		return h, nil, fmt.Errorf("%w: unknown flags", errCorrupt)
	}
	h.sealed, h.pinned = flags&flagSealed != 0, flags&flagPinned != 0
	h.shared, h.adopted = flags&flagShared != 0, flags&flagAdopted != 0
	size := binary.LittleEndian.Uint64(p[8:])
	if size > blob.MaxSize {
		return h, nil, fmt.Errorf("%w: size %d", errCorrupt, size)
	}
	if h.layout, err = blob.NewLayout(int64(size)); err != nil {
		return h, nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return h, p[end+crcLength:], nil
}

// maxSidecar is the most bytes that a sidecar of this header has.
func (h *header) maxSidecar() int64 {
	n := h.layout.Pieces()
	return int64(maxHeader + 2*((n+7)/8) + n*h.digest.LinkSize() + crcLength)
}

// decodeSidecar reads d's sidecar. What it allocates is bounded by the layout of
// the largest blob, after len(p) was found to fit it. The error wraps errVersion
// or errCorrupt.
func decodeSidecar(d blob.Digest, p []byte) (*sidecar, error) {
	h, body, err := decodeHeader(d, p)
	if err != nil {
		return nil, err
	}
	if len(body) < crcLength || binary.LittleEndian.Uint32(p[len(p)-crcLength:]) != checksum(p[:len(p)-crcLength]) {
		return nil, fmt.Errorf("%w: checksum", errCorrupt)
	}
	body = body[:len(body)-crcLength]
	n, size := h.layout.Pieces(), d.LinkSize()
	if h.sealed {
		if len(body) != max(n-1, 0)*size {
			return nil, fmt.Errorf("%w: %d bytes of links", errCorrupt, len(body))
		}
		m := &sidecar{header: h, chain: blob.NewChain(d, h.layout)}
		if n > 0 {
			err = m.chain.Add(1, body)
		}
		return m, corrupt(err)
	}
	bytes := (n + 7) / 8
	if len(body) < 2*bytes {
		return nil, fmt.Errorf("%w: cut short", errCorrupt)
	}
	held, err1 := decodeBits(n, body[:bytes])
	known, err2 := decodeBits(n, body[bytes:2*bytes])
	body = body[2*bytes:]
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if (n > 0 && !known.Has(0)) || len(body) != max(known.Count()-1, 0)*size {
		return nil, fmt.Errorf("%w: %d bytes for %d links", errCorrupt, len(body), known.Count())
	}
	m := &sidecar{header: h, held: held, chain: blob.NewChain(d, h.layout)}
	known.Clear(0)
	for _, r := range known.Runs() {
		if err := m.chain.Add(r.First, body[:r.Count*size]); err != nil {
			return nil, corrupt(err)
		}
		body = body[r.Count*size:]
	}
	for i := held.NextSet(0); i < n; i = held.NextSet(i + 1) {
		if !m.chain.Proves(i) {
			return nil, fmt.Errorf("%w: piece %d without its links", errCorrupt, i)
		}
	}
	return m, nil
}

func corrupt(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return nil
}

func appendBits(p []byte, n int, has func(int) bool) []byte {
	at := len(p)
	p = append(p, make([]byte, (n+7)/8)...)
	for i := range n {
		if has(i) {
			p[at+i/8] |= 1 << (i % 8)
		}
	}
	return p
}

func decodeBits(n int, p []byte) (*blob.Bitmap, error) {
	b := blob.NewBitmap(n)
	for i, c := range p {
		for j := range 8 {
			if c>>j&1 == 1 && !b.Set(i*8+j) {
				return nil, fmt.Errorf("%w: bit %d of %d", errCorrupt, i*8+j, n)
			}
		}
	}
	return b, nil
}

package blob

import "crypto/sha256"

// Place names where an origin keeps a blob, without saying where: who knows the place can
// tell it, others learn nothing from it. Places of different blobs have nothing in common.
// It is comparable.
type Place [16]byte

// PlaceOf is the place of d that parts spell: a registry and a repository, for instance.
func PlaceOf(d Digest, parts ...string) Place {
	h := sha256.New()
	_, _ = h.Write([]byte(d)) // never fails (hash.Hash)
	for _, part := range parts {
		_, _ = h.Write([]byte("\x00" + part))
	}
	var p Place
	copy(p[:], h.Sum(nil))
	return p
}

// MaxPlaces is how many places of one blob are remembered.
const MaxPlaces = 16

// AddPlace adds a place to a list of at most MaxPlaces, where it is not in it yet. first has
// an older one give way where the list is full; else the place is left out. It reports
// whether the list changed.
func AddPlace(list []Place, p Place, first bool) ([]Place, bool) {
	for _, known := range list {
		if known == p {
			return list, false
		}
	}
	switch {
	case len(list) < MaxPlaces:
		return append(list[:len(list):len(list)], p), true
	case first:
		return append(append([]Place(nil), list[1:]...), p), true
	}
	return list, false
}

package peer

import (
	"google.golang.org/grpc/metadata"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// placesKey is the header of a Read stream with the places of the blob, one after the
// other. It is no field of a chunk: it comes once, and who does not know it passes it over.
const placesKey = "damselfly-places-bin"

func placesHeader(places []blob.Place) metadata.MD {
	if len(places) == 0 {
		return nil
	}
	var all []byte
	for _, p := range places {
		all = append(all, p[:]...)
	}
	return metadata.Pairs(placesKey, string(all))
}

// readPlaces reads what a holder says. What does not fit is passed over.
func readPlaces(header metadata.MD) (places []blob.Place) {
	for _, all := range header.Get(placesKey) {
		for ; len(all) >= len(blob.Place{}) && len(places) < blob.MaxPlaces; all = all[len(blob.Place{}):] {
			places = append(places, blob.Place([]byte(all[:len(blob.Place{})])))
		}
	}
	return places
}

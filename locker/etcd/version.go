package etcd

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// tooOld reports whether a server of that version renews a lease without making sure that
// it is still the leader, as those before 3.5.13 do: one that was cut off from the others
// confirms leases that the next leader has ended.
func tooOld(version string) bool {
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return false
	}
	return major < 3 || major == 3 && (minor < 5 || minor == 5 && patch < 13)
}

// checkVersion warns, in the client's log, of a server that is too old. It asks one, and
// does not refuse it: where there is a single server nothing is amiss.
func (e *engine) checkVersion() {
	ctx, cancel := context.WithTimeout(e.client.Ctx(), e.ttl)
	defer cancel()
	resp, err := pb.NewMaintenanceClient(e.client.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	if err == nil && tooOld(resp.Version) {
		e.client.GetLogger().Sugar().Warnf("flockctx: etcd %s may let two hold a lock after a partition between servers; 3.5.13 and later do not", resp.Version)
	}
}

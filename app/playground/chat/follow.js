// Keeps the end of a growing conversation in view, unless the reader has scrolled away from it.
import { useEffect, useLayoutEffect, useRef } from "../vendor/preact-hooks.js";

const NEAR = 120; // CSS pixels below the window that still count as its end

/** Returns refs for the list that grows, and for an element at its end. `isNew()`: whether `last` was just added. */
export function useFollowing(last, isNew) {
  const list = useRef();
  const end = useRef();
  const isFollowing = useRef(false);
  const show = () => end.current?.scrollIntoView({ block: "nearest" });
  useLayoutEffect(() => {
    if (!isNew()) return;
    isFollowing.current = true;
    show();
  }, [last]);
  useEffect(() => {
    if (!list.current) return undefined;
    const look = () => {
      if (!end.current) return; // the view is about to go
      const { top } = end.current.getBoundingClientRect();
      isFollowing.current = top > 0 && top < innerHeight + NEAR;
    };
    const grown = new ResizeObserver(() => isFollowing.current && show());
    grown.observe(list.current);
    addEventListener("scroll", look, { passive: true });
    return () => {
      grown.disconnect();
      removeEventListener("scroll", look);
    };
  }, [last === undefined]);
  return { list, end };
}

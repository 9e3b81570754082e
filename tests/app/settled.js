// Counts the runs of Streamlit's script that the page asks for and that end, on the page's web socket; and tells when
// all have ended and are drawn. It reads protobuf's wire format (ForwardMsg, BackMsg, ClientState of streamlit.proto).
(() => {
  const RERUN = 11, FRAGMENT = 5, BY_ITSELF = 6; // of BackMsg; of its ClientState
  const METADATA = 2, NEW_SESSION = 4, FINISHED = 6, RUN = 6, FRAGMENTS = 2; // of ForwardMsg; of its metadata; of its run
  const EARLY = 2; // it ended for another run

  // The last value of each field: a number, or the bytes of a text or message.
  const read = (bytes) => {
    const found = new Map();
    let at = 0;
    const varint = () => {
      let value = 0, scale = 1;
      for (;;) {
        const byte = bytes[at++];
        value += (byte & 127) * scale;
        if (byte < 128) return value;
        scale *= 128;
      }
    };
    while (at < bytes.length) {
      const tag = varint(), kind = tag & 7;
      const size = kind === 0 ? 0 : kind === 1 ? 8 : kind === 5 ? 4 : varint();
      found.set(tag >>> 3, kind === 0 ? varint() : bytes.subarray(at, (at += size)));
    }
    return found;
  };
  const NOTHING = new Uint8Array();
  // Of the whole script, and of parts of it (st.fragment). A run of the whole covers what was asked of parts.
  const asked = { whole: 0, part: 0 }, begun = { whole: 0, part: 0 }, done = { whole: 0, part: 0 };
  let num_finished = 0;

  const said = (data) => {
    const rerun = read(data).get(RERUN);
    if (!rerun) return;
    const state = read(rerun);
    if (!state.get(BY_ITSELF)) asked[state.has(FRAGMENT) ? "part" : "whole"] += 1; // no clock of the page's
  };
  const heard = (data) => {
    const message = read(new Uint8Array(data));
    if (!message.has(NEW_SESSION) && !message.has(FINISHED)) return;
    const run = read(message.get(METADATA) ?? NOTHING).get(RUN);
    if (message.has(NEW_SESSION)) {
      Object.assign(begun, read(run ?? NOTHING).has(FRAGMENTS) ? { part: asked.part } : asked);
    } else {
      if (run) num_finished += 1;
      if (message.get(FINISHED) !== EARLY) Object.assign(done, begun);
    }
  };

  const send = WebSocket.prototype.send, watched = new WeakSet();
  WebSocket.prototype.send = function (data) {
    if (!watched.has(this)) {
      watched.add(this);
      this.addEventListener("message", (event) => heard(event.data));
    }
    said(data);
    send.call(this, data);
  };

  // Streamlit's own component, which counts the ends of runs that it has drawn.
  const app = () => {
    const root = document.querySelector('[data-testid="stApp"][data-test-script-state="notRunning"]');
    let fiber = root?.[Object.keys(root).find((key) => key.startsWith("__reactFiber$"))];
    while (fiber && fiber.stateNode?.state?.scriptRunFinishedSequence === undefined) fiber = fiber.return;
    return fiber?.stateNode;
  };
  const rests = () =>
    asked.whole > 0 && done.whole === asked.whole && done.part === asked.part &&
    app()?.state.scriptRunFinishedSequence === num_finished;

  // Asked once a frame: true in the third frame in a row in which all rests, for components draw behind Streamlit's commit.
  let waits_for, num_frames, is_sent;
  window.hasSettled = (wait) => {
    if (wait !== waits_for) {
      [waits_for, num_frames, is_sent] = [wait, 0, false];
      setTimeout(() => { is_sent = true; }); // behind the timer of no time that sends what a click asked for
    }
    num_frames = is_sent && rests() ? num_frames + 1 : 0;
    return num_frames === 3;
  };
})();

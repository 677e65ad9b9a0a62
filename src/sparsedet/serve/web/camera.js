// The webcam: one image after the other, each when the service has answered the last one.

const LONGEST = 1280;  // pixels of the longer side that is sent
const QUALITY = 0.85;  // of its JPEG

export const hasCamera = Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  constructor() {
    this.video = document.createElement("video");
    this.video.muted = true;
    this.video.playsInline = true;
    this.media = null;
  }

  get on() {
    return this.media !== null;
  }

  async start() {
    const wish = {facingMode: "environment", width: {ideal: LONGEST}};
    this.media = await navigator.mediaDevices.getUserMedia({video: wish, audio: false});
    this.video.srcObject = this.media;
    await this.video.play();
  }

  stop() {
    this.media?.getTracks().forEach((track) => track.stop());
    this.media = null;
    this.video.srcObject = null;
  }

  // The present image: {image, blob}.
  async take() {
    const {videoWidth, videoHeight} = this.video;
    const scale = Math.min(1, LONGEST / Math.max(videoWidth, videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(videoWidth * scale);
    canvas.height = Math.round(videoHeight * scale);
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
    return {image: canvas, blob};
  }
}
